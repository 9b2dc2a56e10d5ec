import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import fxdecomp
from fxdecomp import Latency, Plan, Policy, PolicyError, Reason, Rule
from fxdecomp.allocation import timed
from fxdecomp.export import Ratio
from fxdecomp.graphs.timed_plans import TimedPlan
from fxdecomp.latency.cache import Taken
from fxdecomp.latency.chain_times import ChainTimes
from fxdecomp.layers import LayerSpec
from fxdecomp.providers import described
from fxdecomp.reporting.rank_curves import timed_ranks

pytest.importorskip("onnxruntime")

FIXED_S = 1e-5
EVERY = [Rule("*", "auto")]
"""The last convolution too, which is left alone without data and a rule."""


@pytest.fixture(scope="module")
def gm() -> GraphModule:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(64, 64, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return fxdecomp.trace(model.eval(), torch.randn(1, 3, 16, 16))


class Clock:
    """A machine on which a chain takes a nanosecond per multiply-accumulate, the whole what it is told."""

    def __init__(self, slow: Callable[[int], float], noise: float = 0.01) -> None:
        self.slow, self.noise, self.calls = slow, noise, 0

    def benchmark(self, models: dict[str, Path], **_: Any) -> Any:
        names = list(models)
        if names != ["dense"]:
            self.calls += 1
        value = 1 / self.slow(self.calls)

        return SimpleNamespace(
            problems=(),
            median_s={name: 1e-2 / (1 if name == "dense" else value) for name in names},
            ratio=lambda slow, fast: Ratio(value, value - self.noise, value + self.noise),
        )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Clock]:
    def measure(self: ChainTimes, chain: tuple[LayerSpec, ...]) -> Taken:
        return Taken(1e-9 * sum(spec.macs for spec in chain))

    def install(slow: Callable[[int], float], noise: float = 0.01) -> Clock:
        found = Clock(slow, noise)
        monkeypatch.setenv("FXDECOMP_CACHE_DIR", str(tmp_path))
        monkeypatch.setattr(ChainTimes, "_measure", measure)
        monkeypatch.setattr(ChainTimes, "_slowdown", lambda *_: 1.0)
        monkeypatch.setattr(timed.LatencyPlanner, "fixed_s", lambda *_: FIXED_S)
        monkeypatch.setattr(timed, "benchmark", found.benchmark)
        monkeypatch.setattr(timed, "write_mock", lambda *_: None)  # this clock reads no file
        return found

    return install


def share_of(report: fxdecomp.Report) -> float:
    return (report.macs_after * 1e-9 + FIXED_S) / (report.macs_before * 1e-9 + FIXED_S)


def test_a_budget_that_the_whole_network_keeps_takes_one_attempt(gm: GraphModule, clock: Any) -> None:
    used = clock(lambda _: 0.49)
    report = fxdecomp.report(fxdecomp.transform(gm, Policy(made_up=False, budget=Latency(0.5), rules=EVERY)))
    assert used.calls == 1
    assert share_of(report) <= 0.5
    assert report.record.latency is not None
    assert report.record.latency.taken == 0
    (attempt,) = report.record.latency.attempts
    assert attempt.predicted_share == pytest.approx(share_of(report))
    assert attempt.measured_share == pytest.approx(0.49)
    assert "2.04x" in report.record.notes[1]
    latency = TimedPlan.from_dict(json.loads(json.dumps(report.record.latency.to_dict())))
    told = timed_ranks(latency, report.outcomes)
    taken = {site for site, menu in told.items() for rank in menu if rank.chosen and rank.name != "dense"}
    assert taken == {done.site for done in report.applied}
    for menu in told.values():
        assert [rank.time_s for rank in menu] == sorted(rank.time_s for rank in menu)
        assert [rank.error for rank in menu] == sorted((rank.error for rank in menu), reverse=True)


def test_a_plan_that_misses_the_budget_is_repaired(gm: GraphModule, clock: Any) -> None:
    used = clock(lambda call: [1.0, 0.8, 0.7][call])
    report = fxdecomp.report(fxdecomp.transform(gm, Policy(made_up=False, budget=Latency(0.7), rules=EVERY)))
    assert used.calls == 2
    assert share_of(report) <= 0.7 * 0.7 / 0.8
    assert "after 2 attempts" in report.record.notes[1]
    assert "missed" not in report.record.notes[1]


def test_a_budget_that_no_attempt_keeps_is_said_to_be_missed(gm: GraphModule, clock: Any) -> None:
    clock(lambda _: 0.8)
    report = fxdecomp.report(fxdecomp.transform(gm, Policy(made_up=False, budget=Latency(0.7), rules=EVERY)))
    assert report.modified
    assert "the budget is missed" in report.record.notes[1]


@pytest.mark.parametrize("slow", [1.2, 1.0, 0.995])
def test_never_slower(gm: GraphModule, clock: Any, slow: float) -> None:
    """What is not faster beyond the noise is dropped, and the report says so."""
    clock(lambda _: slow)
    small = fxdecomp.transform(gm, Policy(made_up=False, budget=Latency(0.5), rules=EVERY))
    report = fxdecomp.report(small)
    assert not report.modified
    assert {outcome.reason for outcome in report.skipped} == {Reason.NOT_FASTER}
    assert "nothing worth changing" in report.record.notes[0]
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(small(x), gm(x))


def test_an_absolute_time_is_the_share_that_it_makes(gm: GraphModule, clock: Any) -> None:
    clock(lambda _: 0.49)
    plans = [
        fxdecomp.report(fxdecomp.transform(gm, Policy(made_up=False, budget=budget, rules=EVERY))).plan
        for budget in (Latency(0.5), Latency(seconds=0.5e-2))
    ]
    assert plans[0] == plans[1]


def test_rules_exclusions_and_floors_are_respected(gm: GraphModule, clock: Any) -> None:
    clock(lambda _: 0.59)
    policy = Policy(
        made_up=False,
        budget=Latency(0.6),
        exclude=["0"],
        rules=[Rule("2", "svd", rank=8), Rule("4", "auto", floor=0.5)],
    )
    with pytest.raises(PolicyError, match=r"Latency.* cannot be met: .* ms of .* ms \(\d+\.\d%\)"):
        fxdecomp.transform(gm, Policy(made_up=False, budget=Latency(0.001), rules=EVERY))
    policy = Policy(
        made_up=False,
        budget=Latency(0.6),
        exclude=["0"],
        rules=[Rule("2", "tucker2", rank=(16, 16)), Rule("4", "auto", floor=0.5)],
    )
    report = fxdecomp.report(fxdecomp.transform(gm, policy))
    applied = {outcome.site: outcome for outcome in report.applied}
    assert set(applied) == {"2", "4"}
    assert applied["2"].rank == (16, 16)
    assert 0.5 * applied["4"].macs_before <= applied["4"].macs_after


def test_the_budget_is_a_share_of_the_network_before_any_rule(gm: GraphModule, clock: Any) -> None:
    clock(lambda _: 0.6)
    policy = Policy(
        made_up=False, budget=Latency(0.6), rules=[Rule("2", "tucker2", rank=(16, 16)), Rule("4", "auto")]
    )
    report = fxdecomp.report(fxdecomp.transform(gm, policy))
    assert 0.55 <= share_of(report) <= 0.6
    assert report.record.latency is not None
    assert report.record.latency.attempts[0].predicted_share == pytest.approx(share_of(report))


def test_layers_are_left_alone_where_a_rule_meets_the_budget_by_itself(gm: GraphModule, clock: Any) -> None:
    clock(lambda _: 0.4)
    policy = Policy(made_up=False, budget=Latency(0.5), rules=[Rule("4", "tucker2", rank=(8, 8))])
    report = fxdecomp.report(fxdecomp.transform(gm, policy))
    assert [outcome.site for outcome in report.applied] == ["4"]
    assert {outcome.reason for outcome in report.skipped} == {Reason.BUDGET}
    assert "2.50x" in report.record.notes[1]


def test_on_other_providers_the_rest_is_what_the_dense_layers_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    planner_type = timed.LatencyPlanner
    monkeypatch.setattr(planner_type, "__enter__", lambda self: self)
    monkeypatch.setattr(planner_type, "_settled_s", lambda _, *, dense: 3e-3 if dense else 1e-3)
    budget = Latency(0.5, provider="CUDAExecutionProvider")
    with planner_type(None, [], budget, {}) as planner:  # type: ignore[arg-type]
        place = SimpleNamespace(description=described(budget.provider))
        planner._dense_s, planner._times = 10e-3, SimpleNamespace(place=place)  # type: ignore[assignment]
        assert planner.fixed_s({"open": 4e-3}) == pytest.approx(3e-3)


def test_a_plan_replays_without_a_clock(gm: GraphModule, clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock(lambda _: 0.49)
    small = fxdecomp.transform(gm, Policy(made_up=False, budget=Latency(0.5), rules=EVERY))

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("a plan times nothing")

    monkeypatch.setattr(timed, "benchmark", forbidden)
    monkeypatch.setattr(ChainTimes, "__init__", forbidden)
    plan = Plan.from_dict(fxdecomp.report(small).plan.to_dict())
    again = fxdecomp.transform(gm, Policy.from_plan(plan))
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(again(x), small(x))


def test_a_real_clock_predicts_and_measures_something(
    gm: GraphModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FXDECOMP_CACHE_DIR", str(tmp_path))
    small = fxdecomp.transform(
        gm, Policy(made_up=False, budget=Latency(0.9), rules=[Rule("*", "channel_svd")])
    )
    report = fxdecomp.report(small)
    assert report.record.latency is not None
    for attempt in report.record.latency.attempts:
        assert 0 < attempt.predicted_share < 1
        assert attempt.measured_s > 0
    assert report.modified == (report.record.latency.taken is not None)
    assert re.search(r"nothing worth changing|measured .* ms against", " ".join(report.record.notes))
    assert list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (Latency, "share, such as"),
        (lambda: Latency(0.5, seconds=1.0), "share, such as"),
        (lambda: Latency(2), "wanted a share"),
        (lambda: Latency(True), "wanted a share"),
        (lambda: Latency(seconds=-1.0), "positive number"),
        (lambda: Latency(0.5, threads=-1), "whole number"),
        (lambda: Latency(0.5, provider=None), "wanted a name"),  # type: ignore[arg-type]
        (lambda: Policy.from_dict({"budget": {"budget": "latency"}}), "needs the key 'target'"),
    ],
)
def test_a_budget_of_time_that_cannot_be_meant_raises(make: Callable[[], object], complaint: str) -> None:
    with pytest.raises(PolicyError, match=complaint):
        make()


@pytest.mark.parametrize("budget", [Latency(0.5, threads=2), Latency(seconds=0.01, provider="X")])
def test_budgets_of_time_survive_dictionaries_and_files(budget: Latency, tmp_path: Path) -> None:
    policy = Policy(made_up=False, budget=budget, rules=EVERY)
    assert Policy.from_dict(policy.to_dict()) == policy
    policy.save(tmp_path / "policy.toml")
    assert Policy.load(tmp_path / "policy.toml") == policy
