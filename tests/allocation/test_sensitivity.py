import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxdecomp
from fxdecomp.allocation.agreement import Agreement
from fxdecomp.allocation.sensitivity import (
    EXAMPLES,
    LOST,
    _InputProbe,
    measure_sensitivity,
    some_of,
    truncated,
)
from fxdecomp.calibration import Calibration
from fxdecomp.sites import survey
from tests.nets import image

X = image(16, 12, seed=3)


class Branches(nn.Module):
    """Two layers whose outputs reach the network's at known strengths, and one that does not at all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.strong, self.weak, self.idle = nn.Linear(12, 32), nn.Linear(12, 32), nn.Linear(12, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.strong(x) + 0.1 * self.weak(x) + 0.0 * self.idle(x)


@pytest.fixture
def gm() -> GraphModule:
    return fxdecomp.trace(Branches().eval(), X)


def test_the_damage_at_the_output_is_what_is_told(gm: GraphModule) -> None:
    """The network is linear, so that a layer's error reaches the output at the square of its strength."""
    found = measure_sensitivity(gm, survey(gm).sites, [X])
    with torch.no_grad():
        y = gm(X)
        outputs = {name: gm.get_submodule(name)(X) for name in found}
    power = {name: float((z - z.mean(0)).square().sum()) for name, z in outputs.items()}
    whole = float((y - y.mean()).square().sum())
    assert found["strong"] == pytest.approx(power["strong"] / whole, rel=1e-4)
    assert found["weak"] == pytest.approx(0.01 * power["weak"] / whole, rel=1e-4)
    assert found["idle"] == 0


@pytest.mark.parametrize("build", [lambda: nn.Conv2d(3, 24, 3), lambda: nn.Conv1d(3, 24, 3)])
def test_convolutions_lose_channels_and_the_last_layer_has_sensitivity_one(build: object) -> None:
    torch.manual_seed(0)
    layer = build()  # type: ignore[operator]
    x = image(4, 3, *(9,) * (layer.weight.ndim - 2))
    gm = fxdecomp.trace(nn.Sequential(layer).eval(), x)
    (value,) = measure_sensitivity(gm, survey(gm).sites, [x, x]).values()
    y = gm(x).detach().double()
    centred = y.movedim(1, -1).reshape(-1, 24)
    ratio = (centred - centred.mean(0)).square().sum() / (y - y.mean()).square().sum()
    assert value == pytest.approx(float(ratio), rel=1e-4)


def test_of_fewer_rows_than_channels_the_same_directions_go() -> None:
    y = image(6, 40, seed=5).double() @ torch.diag(0.8 ** torch.arange(40)).double()
    kept, gone, power = truncated(y, 0, 0.1)
    more = torch.cat((y, *[y] * 9))  # the same covariance, seen from the channels
    tall, gone_tall, power_tall = truncated(more, 0, 0.1)
    assert torch.allclose(kept, tall[:6], atol=1e-10)
    assert (gone, power) == (pytest.approx(gone_tall / 10), pytest.approx(power_tall / 10))
    assert 0 < gone < 0.1 * power


def test_operations_in_place_and_views_see_the_changed_layer_alone() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x).relu_()
            half = y[:, :6]
            z = self.second(y)
            half.mul_(3.0)
            return (y + z).relu_()

    class Plain(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x).relu()
            tripled = torch.cat((y[:, :6] * 3.0, y[:, 6:]), 1)
            return (tripled + self.second(y)).relu()

    found = [
        measure_sensitivity(g, survey(g).sites, [X, X])
        for g in (fxdecomp.trace(n(), X) for n in (Net, Plain))
    ]
    assert found[0] == pytest.approx(found[1])


def test_agreement_is_one_for_the_original_and_falls_with_the_error(gm: GraphModule) -> None:
    metric = Agreement(gm, [X])
    assert metric(gm) == 1.0
    small = fxdecomp.transform(gm, fxdecomp.Policy(method="svd", rank=4))
    y, other = gm(X).detach().double(), small(X).detach().double()
    lost = float((y - other).square().sum() / (y - y.mean()).square().sum())
    assert metric(small) == pytest.approx(1 - lost)


@pytest.mark.parametrize("matters", ["strong", "weak"])
def test_a_budget_spares_the_layer_that_matters(
    gm: GraphModule, matters: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"strong": 1e-3, "weak": 1e-3} | {matters: 1.0}
    monkeypatch.setattr("fxdecomp.allocation.site_work.measure_sensitivity", lambda *_, **__: told)
    policy = fxdecomp.Policy(budget=fxdecomp.MACs(0.8), multiple_of=1, exclude=["idle"])
    report = fxdecomp.report(fxdecomp.transform(gm, policy, calibration=[image(64, 12)], least_agreement=0.0))
    spent = {outcome.site: outcome.macs_after for outcome in report.outcomes}
    assert max(("strong", "weak"), key=spent.__getitem__) == matters


def test_a_few_dozen_examples_are_taken() -> None:
    batches = [X] * 9
    assert len(some_of(Calibration(batches))) * len(X) == EXAMPLES
    assert len(some_of(Calibration([X]))) == 1
    assert 0 < LOST < 0.1


class Reader(nn.Module):
    """A recurrent layer of a known strength, whose input goes elsewhere as well."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.rnn = nn.Linear(12, 10), nn.LSTM(10, 8, batch_first=True)
        self.strength = strength

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return y.sum(-1, keepdim=True) + self.strength * self.rnn(input=y)[0]


def test_a_recurrent_layer_alone_sees_what_is_taken_from_its_input() -> None:
    x = image(16, 6, 12)
    found = []
    for strength in (0.0, 1.0):
        gm = fxdecomp.trace(Reader(strength).eval(), x)
        before = str(gm.graph)
        found.append(measure_sensitivity(gm, survey(gm).sites, [x]))
        assert str(gm.graph) == before
    assert found[0]["rnn"] == 0
    assert found[0]["fc"] > 0
    assert found[1]["rnn"] > 0


def test_its_product_loses_the_weakest_directions() -> None:
    gm = fxdecomp.trace(Reader(1.0).eval(), image(16, 6, 12))
    (site,) = (site for site in survey(gm).sites if site.name == "rnn")
    probe = _InputProbe(site, LOST, {site.calls[0].node.name: "own"})
    x = image(16, 6, 10, seed=5) @ torch.diag(0.7 ** torch.arange(10))
    product = (x @ site.weight.T).double()
    wanted, gone, power = truncated(product, 0, LOST)
    assert torch.allclose(probe.changed("own", x).double() @ site.weight.double().T, wanted, atol=1e-5)
    assert gone > 1e-3 * power
    assert probe.changed("another", x) is x
