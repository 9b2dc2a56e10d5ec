"""Recurrent layers with narrower inputs under calibration, budgets, refit and recovery."""

import pytest
import torch
from torch import Tensor, nn

import fxdecomp
from fxdecomp import Latency, MACs, Params, Policy, Rule
from fxdecomp.allocation import timed
from fxdecomp.calibration import Calibration
from fxdecomp.calibration.collecting import collect
from fxdecomp.sites import survey
from tests.nets import drawn, image

LOW = Policy(rules=[Rule("rnn", method="svd", rank=6)])


class Reader(nn.Module):
    """Features, a recurrent layer in both directions, scores; `[4, 10, 8]` or with the steps first."""

    def __init__(
        self, kind: type[nn.RNNBase] = nn.LSTM, *, bias: bool = True, batch_first: bool = True
    ) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 32)
        self.rnn = kind(32, 16, bidirectional=True, batch_first=batch_first, bias=bias)
        self.head = nn.Linear(32, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(torch.relu(self.fc(x)))[0])


def batches(count: int = 12, seed: int = 0) -> list[Tensor]:
    """Inputs of few directions with a mean, so that the moments matter."""
    mixed = image(count, 4, 10, 3, seed=seed) @ image(3, 8, seed=9) + image(8, seed=8)
    return list(mixed + 0.2 * image(count, 4, 10, 8, seed=seed + 1))


def error(small: nn.Module, gm: nn.Module) -> float:
    fresh = torch.cat(batches(4, seed=20))
    with torch.no_grad():
        return float((small(fresh) - gm(fresh)).square().mean() / gm(fresh).var())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_the_fit_to_inputs_beats_the_weights_alone_and_is_refitted_behind_others(
    kind: type[nn.RNNBase], bias: bool
) -> None:
    data = batches()
    gm = fxdecomp.trace(drawn(Reader(kind, bias=bias)), data[0])
    plain, fitted = (fxdecomp.transform(gm, LOW, calibration=given) for given in (None, data))
    assert error(fitted, gm) < 0.5 * error(plain, gm)
    assert fxdecomp.report(fitted).params_after == sum(p.numel() for p in fitted.parameters())
    both = Policy(rules=[*LOW.rules, Rule("fc", method="svd", rank=2)])
    once = fxdecomp.transform(gm, both, calibration=Calibration(data, refit=False))
    again = fxdecomp.transform(gm, both, calibration=data)
    assert error(again, gm) < error(once, gm)
    assert any("2 of 2 chains were refitted" in note for note in fxdecomp.report(again).record.notes)
    replayed = fxdecomp.transform(gm, Policy.from_plan(fxdecomp.report(again).plan), calibration=data)
    pairs = zip(replayed.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_inputs_are_told_apart_whichever_axis_is_theirs() -> None:
    """How far moments are trusted depends on which rows belong to one input."""
    data = batches()
    found = []
    for batch_first in (True, False):
        model = drawn(Reader(batch_first=batch_first))
        given = data if batch_first else [x.transpose(0, 1) for x in data]
        gm = fxdecomp.trace(model, given[0])
        sites = [site for site in survey(gm).sites if site.name == "rnn"]
        (moments,) = collect(gm, sites, Calibration(given))
        found.append(moments["rnn"][0])
    assert found[0].ridge == pytest.approx(found[1].ridge, rel=1e-6)
    assert torch.allclose(found[0].covariance, found[1].covariance)


@pytest.mark.parametrize("budget", [MACs(0.75), Params(0.75)])
@pytest.mark.parametrize("calibrated", [False, True])
def test_budgets_reach_into_recurrent_layers(
    budget: fxdecomp.MACs | fxdecomp.Params, calibrated: bool
) -> None:
    data = batches()
    gm = fxdecomp.trace(drawn(Reader()), data[0])
    small = fxdecomp.transform(
        gm, Policy(budget=budget, multiple_of=1), calibration=data if calibrated else None
    )
    told = fxdecomp.report(small)
    assert "rnn" in {o.site for o in told.applied}
    count = sum(p.numel() for p in small.parameters()), sum(p.numel() for p in gm.parameters())
    share = told.macs_after / told.macs_before if budget.name == "macs" else count[0] / count[1]
    assert 0.7 < share <= 0.75
    assert told.params_after == count[0]


def test_a_budget_of_time_assembles_and_times_them(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(timed, "_TIMING_S", 1.0)
    monkeypatch.setattr(timed, "_ATTEMPTS", 1)
    model = drawn(nn.Sequential(nn.Linear(8, 256), nn.LSTM(256, 16, bidirectional=True)))

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.rnn = model[0], model[1]

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(self.fc(x))[0]

    x = image(60, 2, 8)
    gm = fxdecomp.trace(Last().eval(), x)
    policy = Policy(rules=[Rule("*", method="auto")], made_up=False, budget=Latency(0.9), multiple_of=8)
    told = fxdecomp.report(fxdecomp.transform(gm, policy))
    assert told.record.latency is not None
    attempts = told.record.latency.attempts
    assert all(attempt.predicted_share < 1 for attempt in attempts)
    assert [o.site for o in told.applied if o.site == "rnn"] == (
        ["rnn"] if told.record.latency.taken is not None else []
    )


def test_recovery_trains_the_layer_by_its_output() -> None:
    data = batches()
    gm = fxdecomp.trace(drawn(Reader()), data[0])
    small = fxdecomp.transform(gm, LOW)
    before = error(small, gm)
    blocks = fxdecomp.recover(small, gm, data, block_steps=60, steps=0)
    assert error(blocks, gm) < 0.8 * before
    states = "rnn.pointwise_out.weight_hh_l0"
    assert not torch.equal(blocks.state_dict()[states], small.state_dict()[states])
