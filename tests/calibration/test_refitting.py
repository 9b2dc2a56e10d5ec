import pytest
import torch
from fxdecomp.decompositions.refitting import GroupChain, JointMoments, refit
from torch import nn

import fxdecomp
from fxdecomp import Policy
from fxdecomp.calibration import Calibration
from fxdecomp.passes import DecomposeLayers, FoldBatchNorm, RefitChains
from fxdecomp.records import record_of


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def joint(z: torch.Tensor, y: torch.Tensor) -> JointMoments:
    return JointMoments.of(z[:50], y[:50]) + JointMoments.of(z[50:], y[50:])


def test_error_of_the_sums_is_the_error_of_the_samples():
    z, y = normal(200, 6, seed=0) + 2, normal(200, 4, seed=1) - 1
    tail = Tail(normal(4, 3, seed=2), normal(4, seed=3), normal(3, 6, seed=4))
    wanted = (y - z @ tail.whole.T - tail.bias).square().sum(1).mean()
    assert joint(z, y).error(tail) == pytest.approx(float(wanted), rel=1e-10)
    assert torch.allclose(joint(z, y).covariance, torch.cov(z.T, correction=0), atol=1e-12)


def test_a_linear_truth_is_found():
    truth = Tail(normal(5, 2, seed=0), normal(5, seed=1), normal(2, 6, seed=2))
    z = normal(4000, 6, seed=3) + 1
    y = z @ truth.whole.T + truth.bias
    now = Tail(truth.outer + normal(5, 2, seed=4), truth.bias + 1, truth.inner + normal(2, 6, seed=5))
    found = refit(joint(z[:3000], y[:3000]), joint(z[3000:], y[3000:]), now)
    assert found is not None
    assert found.outer.shape == (5, 2)
    assert torch.allclose(found.whole, truth.whole, atol=1e-3)
    assert torch.allclose(found.bias, truth.bias, atol=1e-2)


def test_noise_that_does_not_generalise_changes_nothing():
    now = Tail(normal(4, 30, seed=0), torch.zeros(4, dtype=torch.float64))
    z = normal(2040, 30, seed=1)
    y = z @ now.outer.T + 5 * normal(2040, 4, seed=2)
    y = y - y[:40].mean(0)
    now = Tail(now.outer, -(z @ now.outer.T - y)[40:].mean(0))
    assert refit(joint(z[:40], y[:40]), joint(z[40:], y[40:]), now) is None


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(6, 16, 3, padding=1), nn.Conv2d(16, 24, 3, stride=2, groups=2)
        self.three, self.head = nn.Conv2d(24, 24, 3, padding=1, bias=False), nn.Linear(24, 12)

    def forward(self, x):
        x = self.one(x).relu()
        x = self.two(x).relu_()
        x = x + self.three(x).relu_()
        return self.head(x.mean((2, 3)))


def smooth(count: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.nn.functional.avg_pool2d(torch.randn(8, 6, 18, 18, generator=generator), 3, 1)
        for _ in range(count)
    ]


@pytest.mark.parametrize("method", ["tucker2", "cp", "spatial_svd", "channel_svd", "tensor_train"])
def test_the_network_output_comes_closer_on_other_inputs(method):
    torch.manual_seed(0)
    net = Net().eval()
    data, others = smooth(4, 0), torch.cat(smooth(4, 1))
    gm = fxdecomp.trace(net, data[0])
    policy = Policy(method=method, rank=0.4, exclude=["head"], require_saving=False)
    errors = []
    for calibration in (None, Calibration(data, refit=False), Calibration(data)):
        small = fxdecomp.transform(gm, policy, calibration=calibration)
        with torch.no_grad():
            errors.append(float((small(others) - net(others)).square().mean()))
    assert errors[2] < errors[1] < errors[0]
    assert any("chains were refitted" in note for note in record_of(small).notes)


def test_budget_and_input_are_respected_and_the_result_repeats():
    torch.manual_seed(0)
    data = smooth(2, 0)
    gm = FoldBatchNorm()(fxdecomp.trace(Net().eval(), data[0]))
    policy = Policy(method="tucker2", rank=0.4, rules=[fxdecomp.Rule("head", "svd", 3)], require_saving=False)
    small = DecomposeLayers(policy, calibration=Calibration(data))(gm)
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    refitted = [RefitChains(gm, Calibration(data, budget_bytes=budget))(small) for budget in (2 << 30, 1)]
    assert all(torch.equal(before[name], tensor) for name, tensor in small.state_dict().items())
    assert not torch.equal(refitted[0](data[0]), small(data[0]))
    assert torch.equal(refitted[0](data[0]), refitted[1](data[0]))
