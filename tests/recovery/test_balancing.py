import itertools

import pytest
import torch
from torch import nn

from fxdecomp.recovery.balancing import balance


def unbalanced(stages):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for stage in stages[:-1]:
            stage.weight.mul_(
                10
                ** (4 * torch.rand(len(stage.weight), generator=generator) - 2).reshape(
                    -1, *[1] * (stage.weight.ndim - 1)
                )
            )
    return nn.Sequential(*stages).double()


CHAINS = {
    "cp": (
        lambda: [
            nn.Conv2d(6, 5, 1, bias=False),
            nn.Conv2d(5, 5, (3, 1), groups=5, bias=False),
            nn.Conv2d(5, 5, (1, 3), groups=5, bias=False),
            nn.Conv2d(5, 7, 1),
        ],
        (2, 6, 9, 9),
    ),
    "linear": (lambda: [nn.Linear(6, 3), nn.Linear(3, 8)], (2, 6)),
    "grouped": (lambda: [nn.Conv1d(6, 4, 1, groups=2, bias=False), nn.Conv1d(4, 8, 3, groups=2)], (2, 6, 9)),
    "transposed": (
        lambda: [
            nn.Conv2d(6, 4, 1, bias=False),
            nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False),
            nn.Conv2d(6, 3, 1),
        ],
        (2, 6, 5, 5),
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_the_function_stays_and_the_norms_meet(name):
    make, shape = CHAINS[name]
    torch.manual_seed(0)
    chain = unbalanced(make())
    x = torch.randn(shape, dtype=torch.float64)
    before = chain(x)
    spread = [float(stage.weight.detach().norm()) for stage in chain]
    balance(list(chain))
    torch.testing.assert_close(chain(x), before, rtol=1e-10, atol=1e-10)
    after = [float(stage.weight.detach().norm()) for stage in chain]
    assert max(after) / min(after) < 0.5 * max(spread) / min(spread)


def test_cp_ends_with_factors_of_one_size():
    make, _ = CHAINS["cp"]
    torch.manual_seed(0)
    chain = unbalanced(make())
    balance(list(chain))
    norms = [chain[0].weight.flatten(1).norm(dim=1), chain[1].weight.flatten(1).norm(dim=1)]
    norms += [chain[2].weight.flatten(1).norm(dim=1), chain[3].weight.flatten(1).norm(dim=0)]
    for one, other in itertools.pairwise(norms):
        torch.testing.assert_close(one, other, rtol=0.05, atol=0)


def test_a_dead_component_stays_dead_and_finite():
    chain = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 4))
    with torch.no_grad():
        chain[0].weight[1] = 0
    before = chain(torch.ones(1, 4))
    balance(list(chain))
    assert all(torch.isfinite(p).all() for p in chain.parameters())
    torch.testing.assert_close(chain(torch.ones(1, 4)), before)
