import pytest
import torch
from torch import nn

import fxdecomp
from fxdecomp import Policy
from fxdecomp.allocation.site_work import SiteWork
from fxdecomp.calibration import Calibration
from fxdecomp.calibration.splitting import split
from fxdecomp.graphs.records import record_of
from fxdecomp.passes import DecomposeLayers, FoldBatchNorm, RefitChains


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
    small = DecomposeLayers(policy, SiteWork(gm, Calibration(data)))(gm)
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    refitted = [
        RefitChains(gm, Calibration(data, budget_bytes=budget))(small) for budget in (2 << 30, 32 * 240**2)
    ]
    assert all(torch.equal(before[name], tensor) for name, tensor in small.state_dict().items())
    assert not torch.equal(refitted[0](data[0]), small(data[0]))
    assert torch.equal(refitted[0](data[0]), refitted[1](data[0]))


def test_the_report_tells_the_errors_after_the_refit():
    torch.manual_seed(0)
    net = Net().eval()
    data = smooth(4, 0)
    gm = fxdecomp.trace(net, data[0])
    policy = Policy(method="tucker2", rank=0.4, exclude=["head"], require_saving=False)
    small = fxdecomp.transform(gm, policy, calibration=Calibration(data, samples=100_000))
    three = next(outcome for outcome in fxdecomp.report(small).applied if outcome.site == "three")
    seen: dict[str, torch.Tensor] = {}
    for name, module in (("wanted", net.three), ("got", small.get_submodule("three.pointwise_out"))):
        module.register_forward_hook(lambda m, i, o, name=name: seen.__setitem__(name, o.clone()))
    with torch.no_grad():
        fitted, _ = split(Calibration(data))  # errors are those on the inputs that are fitted to
        net(torch.cat(fitted.batches)), small(torch.cat(fitted.batches))
    wanted, got = (seen[name].movedim(1, -1).flatten(0, -2) for name in ("wanted", "got"))
    lost = (wanted - got).square().sum() / (wanted - wanted.mean(0)).square().sum()
    assert three.output_error == pytest.approx(float(lost), rel=1e-3)
    assert 0 < three.relative_error < 1


def test_a_chain_at_several_places_is_named_as_not_refitted():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x).relu())

    torch.manual_seed(0)
    data = smooth(4, 0)
    gm = fxdecomp.trace(Twice().eval(), data[0])
    small = fxdecomp.transform(gm, Policy(method="tucker2", rank=0.5, require_saving=False), calibration=data)
    assert any("several places are not refitted: conv" in note for note in record_of(small).notes)


@pytest.mark.parametrize("method", ["cp", "tensor_train", "spatial_svd"])
def test_weights_stay_small_in_directions_that_smooth_images_do_not_show(method):
    torch.manual_seed(0)
    convs = [nn.Conv2d(channels, 24, 3, padding=1) for channels in (3, 24, 24)]
    net = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2]).eval()
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(8, 3, 24, 24, generator=generator) for _ in range(4)]
    data = [torch.nn.functional.avg_pool2d(each, 9, 1) for each in noise]
    policy = Policy(method=method, rank=0.3, require_saving=False)
    small = fxdecomp.transform(fxdecomp.trace(net, data[0]), policy, calibration=data)
    assert max(outcome.relative_error for outcome in fxdecomp.report(small).applied) < 1.1


class Activated(nn.Module):
    """A convolution that `behind` sees, and nothing else."""

    def __init__(self, behind) -> None:
        super().__init__()
        self.conv, self.behind = nn.Conv2d(6, 16, 3, padding=1), behind

    def forward(self, x):
        return self.behind(self.conv(x))


class Leaking(nn.Module):
    """The output of the convolution is seen before its ReLU too."""

    def forward(self, x):
        return x.relu() + x.sum()


@pytest.mark.parametrize(
    ("behind", "rectified"),
    [
        (nn.ReLU(), True),
        (nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(inplace=True)), True),
        (nn.Sequential(nn.GELU(), nn.ReLU()), False),
        (Leaking(), False),
        (nn.Identity(), False),
    ],
)
@pytest.mark.parametrize("exported", [False, True])
def test_only_a_relu_that_alone_sees_the_output_is_accounted_for(monkeypatch, behind, rectified, exported):
    import fxdecomp.passes.refit_chains as refit_chains

    torch.manual_seed(0)
    net = Activated(behind).eval()
    data = smooth(4, 0)
    source = torch.export.export(net, (data[0],)) if exported else net
    gm = fxdecomp.trace(source, data[0])
    policy = Policy(method="tucker2", rank=0.4, require_saving=False)
    asked: list[bool] = []
    monkeypatch.setattr(refit_chains, "rectify", lambda fit, held, group: asked.append(True) or group)
    fxdecomp.transform(gm, policy, calibration=data)
    assert bool(asked) is rectified


def test_the_relu_output_comes_closer_on_other_inputs(monkeypatch):
    import fxdecomp.passes.refit_chains as refit_chains

    torch.manual_seed(0)
    net = Activated(nn.ReLU()).eval()
    with torch.no_grad():
        net.conv.bias.fill_(-0.1)
    data, others = smooth(4, 0), torch.cat(smooth(4, 1))
    gm = fxdecomp.trace(net, data[0])
    policy = Policy(method="tucker2", rank=0.4, require_saving=False)
    errors = []
    for fitted in (refit_chains.rectify, lambda fit, held, group: group):
        monkeypatch.setattr(refit_chains, "rectify", fitted)
        small = fxdecomp.transform(gm, policy, calibration=data)
        with torch.no_grad():
            errors.append(float((small(others) - net(others)).square().mean()))
    assert errors[0] < 0.95 * errors[1]
