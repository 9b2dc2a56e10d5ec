"""Shared inputs that a budget finds: against chains of the same layers, and the network without any."""

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxdecomp
from fxdecomp import Latency, MACs, Params, Policy, Rule, pipeline
from fxdecomp.allocation.joints import joints_of
from fxdecomp.allocation.site_work import SiteWork
from fxdecomp.allocation.workers import ALONE
from tests.nets import drawn, image

OPEN = Policy(budget=MACs(0.5), rules=[Rule("*", share="auto")], multiple_of=2)


class Branches(nn.Module):
    """Three layers on one value, and two on another."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(24, 24) for _ in range(3))
        self.d, self.e = nn.Linear(24, 24), nn.Linear(24, 24)
        self.out = nn.Linear(24, 12)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.a(x)) + torch.sin(self.b(x)) + torch.cos(self.c(x))
        return self.out(torch.tanh(self.d(y)) * torch.sigmoid(self.e(y)))


def traced() -> tuple[GraphModule, list[Tensor]]:
    """The first three need the same eight directions of their input; the other two have none in common."""
    model = drawn(Branches())
    rows = image(8, 24, seed=3)
    with torch.no_grad():
        for number, layer in enumerate((model.a, model.b, model.c)):
            layer.weight.copy_(image(24, 8, seed=number) @ rows / 8)
        for number, layer in enumerate((model.d, model.e)):
            layer.weight.copy_(image(24, 4, seed=number) @ image(4, 24, seed=number + 5) / 5)
    data = [image(8, 24, seed=seed) for seed in range(40)]
    return fxdecomp.trace(model, data[0]), data


@pytest.mark.parametrize("budget", [MACs(0.5), Params(0.5)])
def test_the_budget_lets_share_what_needs_the_same(budget: MACs | Params) -> None:
    gm, data = traced()
    policy = Policy(budget=budget, rules=OPEN.rules, multiple_of=2)
    small = fxdecomp.transform(gm, policy, calibration=data)
    plain = fxdecomp.transform(gm, Policy(budget=budget, multiple_of=2), calibration=data)
    told, other = fxdecomp.report(small), fxdecomp.report(plain)
    assert {o.site: o.shares for o in told.applied if o.shares} == {
        "a": ("b", "c"),
        "b": ("a", "c"),
        "c": ("a", "b"),
    }
    assert getattr(told, f"{budget.name}_after") <= 0.5 * getattr(told, f"{budget.name}_before")
    assert told.quality is not None
    assert other.quality is not None
    assert told.quality.relative_error < 0.5 * other.quality.relative_error
    assert any("what shares input stages was chosen" in note for note in told.record.notes)
    replayed = fxdecomp.transform(gm, Policy.from_plan(told.plan), calibration=data)
    pairs = zip(replayed.state_dict().values(), small.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    again = fxdecomp.transform(small, policy, calibration=data)
    assert fxdecomp.report(again).outcomes == told.outcomes


def test_of_those_that_read_the_same_some_may_share() -> None:
    gm, data = traced()
    with torch.no_grad():  # one of the three needs two directions, and none of the others'
        gm.get_submodule("b").weight.copy_(image(24, 2, seed=8) @ image(2, 24, seed=9) / 4)
    gm = fxdecomp.trace(gm, data[0])
    tight = Policy(budget=MACs(0.44), rules=OPEN.rules, multiple_of=2)
    told = fxdecomp.report(fxdecomp.transform(gm, tight, calibration=data))
    assert {o.site: o.shares for o in told.applied if o.shares} == {"a": ("c",), "c": ("a",)}
    assert {o.site for o in told.applied} > {"a", "b", "c"}


def test_times_are_told_to_be_of_joined_layers() -> None:
    gm, _ = traced()
    policy = Policy(budget=Latency(0.5), rules=[Rule("[abc]", share="input")])
    joints, notes = joints_of(policy, SiteWork(gm, None), ALONE)
    assert [joint.names for joint in joints] == [("a", "b", "c")]
    assert notes == (
        "the times are of networks in which layers that share their input are one, but for the dense one",
    )


def test_what_shares_nothing_wins_where_it_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    gm, data = traced()
    monkeypatch.setattr(pipeline, "worth_sharing", lambda *_: ("d", "e"))
    plain = fxdecomp.transform(gm, Policy(budget=MACs(0.5), multiple_of=2), calibration=data)
    small = fxdecomp.transform(gm, OPEN, calibration=data)
    pairs = zip(plain.state_dict().values(), small.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    notes = fxdecomp.report(small).record.notes
    assert any("what shares none was chosen on held-out calibration" in note for note in notes)


@pytest.mark.parametrize("given", [None, 1])
def test_without_inputs_enough_none_is_open(given: int | None) -> None:
    gm, data = traced()
    calibration = None if given is None else data[:given]
    small, plain = (
        fxdecomp.transform(gm, policy, calibration=calibration)
        for policy in (OPEN, Policy(budget=MACs(0.5), multiple_of=2))
    )
    assert fxdecomp.report(small).outcomes == fxdecomp.report(plain).outcomes


def test_a_budget_of_time_finds_none() -> None:
    with pytest.raises(fxdecomp.PolicyError, match="Latency finds no shares; name the layers"):
        Policy(budget=Latency(0.5), rules=OPEN.rules)
