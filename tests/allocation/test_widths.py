"""Widths that a budget finds: against chains of the same layers, and against the network without any."""

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

import fxdecomp
from fxdecomp import MACs, Params, Policy, Rule, pipeline
from fxdecomp.allocation.site_work import SiteWork
from fxdecomp.allocation.widths import found_widths
from fxdecomp.allocation.workers import ALONE
from fxdecomp.calibration import Calibration
from fxdecomp.calibration.moments import Moments
from fxdecomp.fitting.removal import removal_errors, remove_channels
from fxdecomp.passes import FoldBatchNorm
from tests.nets import drawn, image

OPEN = Policy(budget=MACs(0.5), rules=[Rule("*", width="auto")], multiple_of=4)


class Mlp(nn.Module):
    """Three layers in a row, the first of which has many outputs that nothing depends on; ranks are full."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 64), nn.Linear(64, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.c(F.relu(self.b(F.relu(self.a(x)))))


def traced() -> tuple[GraphModule, list[Tensor]]:
    model = drawn(Mlp())
    with torch.no_grad():
        model.b.weight[:, 20:] *= 0.01
    data = [image(8, 16, seed=seed) for seed in range(40)]
    return fxdecomp.trace(model, data[0]), data


def test_the_budget_narrows_where_chains_would_lose_more() -> None:
    gm, data = traced()
    plain = fxdecomp.transform(gm, Policy(budget=MACs(0.5), multiple_of=4), calibration=data)
    small = fxdecomp.transform(gm, OPEN, calibration=data)
    told, other = fxdecomp.report(small), fxdecomp.report(plain)
    widths = {row.site: row.outputs for row in told.record.widths if row.outputs is not None}
    assert widths.keys() == {"a"}  # b is the layer that reads them: its own outputs stay
    assert 20 <= widths["a"] <= 32
    assert told.macs_after <= 0.5 * told.macs_before
    assert told.quality is not None
    assert other.quality is not None
    assert told.quality.relative_error < 0.5 * other.quality.relative_error
    assert any("what has fewer inner channels was chosen" in note for note in told.record.notes)
    replayed = fxdecomp.transform(gm, Policy.from_plan(told.plan), calibration=data)
    pairs = zip(replayed.state_dict().values(), small.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    again = fxdecomp.transform(small, OPEN, calibration=data)
    assert fxdecomp.report(again).outcomes == told.outcomes
    tight = Policy(budget=MACs(0.3), rules=OPEN.rules, multiple_of=4)
    assert found_widths(tight, small, SiteWork(small, Calibration(data)), ALONE) == ()


def test_what_has_all_its_channels_wins_where_it_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    gm, data = traced()
    monkeypatch.setattr(pipeline, "found_widths", lambda *_: ({"a": 4},))
    plain = fxdecomp.transform(gm, Policy(budget=MACs(0.5), multiple_of=4), calibration=data)
    small = fxdecomp.transform(gm, OPEN, calibration=data)
    pairs = zip(plain.state_dict().values(), small.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    notes = fxdecomp.report(small).record.notes
    assert any("what has all inner channels was chosen on held-out calibration" in note for note in notes)


@pytest.mark.parametrize("given", [None, 1])
def test_without_inputs_enough_no_width_is_open(given: int | None) -> None:
    gm, data = traced()
    calibration = None if given is None else data[:given]
    found = [
        fxdecomp.transform(gm, policy, calibration=calibration)
        for policy in (OPEN, Policy(budget=MACs(0.5), multiple_of=4))
    ]
    pairs = zip(*(each.state_dict().values() for each in found), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_places_with_a_layer_in_common_exclude_each_other() -> None:
    gm, data = traced()
    folded = FoldBatchNorm()(gm)
    work = SiteWork(folded, Calibration(data))
    only = Policy(budget=Params(0.5), rules=[Rule("b", width="auto")], multiple_of=4)
    assert all(found.keys() <= {"b"} for found in found_widths(only, folded, work, ALONE))
    assert {*map(tuple, found_widths(OPEN, folded, work, ALONE))} == {("a",)}


def test_narrower_layers_are_chains_as_well_where_that_is_what_there_is_room_for() -> None:
    model = drawn(Mlp())
    with torch.no_grad():
        model.a.weight.copy_(image(64, 4, seed=2) @ image(4, 16, seed=3) / 8)
        model.b.weight[:, 20:] = 0
        model.b.weight[:, :20] = image(16, 4, seed=4) @ image(4, 20, seed=5) / 8
    data = [image(8, 16, seed=seed) for seed in range(40)]
    gm = fxdecomp.trace(model, data[0])
    tight = Policy(budget=MACs(0.25), rules=OPEN.rules, multiple_of=2)
    told = fxdecomp.report(fxdecomp.transform(gm, tight, calibration=data))
    choices = {choice.site: (choice.width, choice.method, choice.rank) for choice in told.plan.choices}
    assert choices["a"] == (20, "svd", (4,))
    assert choices["b"] == (None, "svd", (4,))
    assert told.quality is not None
    assert told.quality.relative_error < 1e-3


def test_more_channels_than_the_budget_has_room_for_are_an_answer_too() -> None:
    gm, data = traced()
    folded = FoldBatchNorm()(gm)
    first, second = found_widths(
        Policy(budget=MACs(0.4), rules=OPEN.rules, multiple_of=4),
        folded,
        SiteWork(folded, Calibration(data)),
        ALONE,
    )
    assert first["a"] < second["a"]


def test_errors_on_the_way_down_are_those_of_the_networks_there() -> None:
    weight, rows = image(5, 9, 2).double(), image(60, 18, seed=4).double() @ image(18, 18, seed=5).double()
    moments = Moments(rows.T @ rows / 60, rows.mean(0), 60)
    errors = removal_errors(weight, moments, 2)
    assert len(errors) == 8
    for gone, error in enumerate(errors):
        assert error == pytest.approx(remove_channels(weight, moments, 9 - gone).error, rel=1e-4, abs=1e-8)


def test_open_widths_want_a_budget() -> None:
    with pytest.raises(fxdecomp.PolicyError, match="width 'auto' needs a budget"):
        Policy(method="svd", rules=[Rule("a", width="auto")])
