"""With data and one rank for all, a layer stays whose loss at the outputs is out of proportion."""

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxdecomp
from fxdecomp import Policy, Reason, Rule
from tests.nets import image

BATCHES = list(image(32, 8, 8, 8).split(4))


@pytest.fixture(scope="module")
def gm() -> GraphModule:
    """Two convolutions of low rank, and a head of ten outputs all of whose directions matter."""
    torch.manual_seed(0)
    pool, flat = nn.AdaptiveAvgPool2d(2), nn.Flatten()
    body = (nn.Conv2d(8, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())
    model = nn.Sequential(*body, pool, flat, nn.Linear(128, 10)).eval()
    with torch.no_grad():
        for conv in (model[0], model[2]):
            left, _, right = torch.linalg.svd(conv.weight.flatten(1), full_matrices=False)
            conv.weight.copy_((left[:, :4] @ right[:4]).reshape(conv.weight.shape))
        model[-1].bias -= model(torch.cat(BATCHES)).mean(0)  # what the outputs differ by is their signal
    return fxdecomp.trace(model, BATCHES[0])


def reasons(small: GraphModule) -> dict[str, Reason]:
    return {each.site: each.reason for each in fxdecomp.report(small).skipped}


@pytest.mark.parametrize("rank", [4, 0.4])
def test_the_head_stays(gm: GraphModule, rank: float) -> None:
    small = fxdecomp.transform(gm, Policy("channel_svd", rank), calibration=BATCHES)
    assert reasons(small) == {"6": Reason.OUT_OF_PROPORTION}
    (left,) = fxdecomp.report(small).skipped
    assert left.detail.startswith("100.0% of what all layers lose") or float(left.detail.split("%")[0]) > 50
    everything = Policy(rules=[Rule("*", "channel_svd", rank)])
    named = fxdecomp.transform(gm, everything, calibration=BATCHES)
    assert not reasons(named)
    agreement = [fxdecomp.report(each).quality.agreement for each in (small, named)]
    assert agreement[0] > agreement[1]


def test_a_replay_leaves_it_too(gm: GraphModule) -> None:
    small = fxdecomp.transform(gm, Policy("channel_svd", 4), calibration=BATCHES)
    again = fxdecomp.transform(gm, Policy.from_plan(fxdecomp.report(small).plan), calibration=BATCHES)
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in small.state_dict().items())


def test_layers_that_lose_in_proportion_are_all_taken() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            for part in self.parts:
                x = x + torch.relu(part(x))
            return x

    torch.manual_seed(0)
    gm = fxdecomp.trace(Net(), image(1, 32))
    small = fxdecomp.transform(gm, Policy("svd", 8), calibration=list(image(64, 32).split(8)))
    assert not reasons(small)
