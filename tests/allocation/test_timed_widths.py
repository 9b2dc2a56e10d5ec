"""Widths under a budget of time, on a machine whose times are known."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.fx import GraphModule

import fxdecomp
from fxdecomp import Latency, MACs, Policy, Rule, pipeline
from fxdecomp.allocation import timed
from fxdecomp.allocation.timed import missed
from fxdecomp.decompositions import method_named
from fxdecomp.decompositions.factorising import forms_of
from fxdecomp.errors import BudgetError
from fxdecomp.export import Ratio
from fxdecomp.graphs.timed_plans import TimedAttempt, TimedPlan
from fxdecomp.latency.cache import Taken
from fxdecomp.latency.chain_times import ChainTimes
from fxdecomp.layers import LayerSpec
from fxdecomp.sites import survey
from tests.allocation.test_widths import traced

pytest.importorskip("onnxruntime")

FIXED_S = 1e-6
OPEN = Policy(budget=Latency(0.5), rules=[Rule("*", width="auto")], multiple_of=4)


def time_of(specs: list[LayerSpec]) -> float:
    """A nanosecond for each multiply-accumulate, and 8 us for each layer: no chain of these layers pays."""
    return sum(8e-6 + 1e-9 * spec.macs for spec in specs)


class Machine:
    """Knows what the networks take that are written, and what was timed against what."""

    def __init__(self) -> None:
        self.times: dict[Path, float] = {}
        self.layers: dict[Path, int] = {}

    def write(self, gm: GraphModule, picks: Mapping[str, Any], path: Path) -> None:
        sites = survey(gm).sites
        specs = [
            stage.spec
            for site in sites
            if site.name in picks
            for form in forms_of(method_named(picks[site.name][0]), picks[site.name][1], site.specs)
            for stage in form.stages
        ]
        specs += [spec for site in sites if site.name not in picks for spec in site.specs]
        self.times[path] = FIXED_S + time_of(specs)
        self.layers[path] = sum(site.params for site in sites)

    def benchmark(self, models: dict[str, Path], **_: Any) -> Any:
        taken = {name: self.times[path] for name, path in models.items()}

        def ratio(slow: str, fast: str) -> Ratio:
            value = taken[slow] / taken[fast]
            return Ratio(value, value - 0.001, value + 0.001)

        return SimpleNamespace(problems=(), median_s=taken, ratio=ratio)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    found = Machine()
    monkeypatch.setenv("FXDECOMP_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(ChainTimes, "_measure", lambda _, chain: Taken(time_of(list(chain))))
    monkeypatch.setattr(ChainTimes, "_slowdown", lambda *_: 1.0)
    monkeypatch.setattr(timed.LatencyPlanner, "fixed_s", lambda *_: FIXED_S)
    monkeypatch.setattr(timed, "benchmark", found.benchmark)
    monkeypatch.setattr(timed, "write_mock", found.write)
    return found


def only_attempt(report: fxdecomp.Report) -> TimedAttempt:
    assert report.record.latency is not None
    (attempt,) = report.record.latency.attempts
    return attempt


@pytest.mark.usefixtures("machine")
def test_widths_meet_a_budget_of_time_that_chains_cannot() -> None:
    gm, data = traced()
    tight = Policy(budget=Latency(0.75), rules=OPEN.rules, multiple_of=4)
    with pytest.raises(BudgetError, match="cannot be met"):
        fxdecomp.transform(gm, Policy(budget=Latency(0.75), multiple_of=4), calibration=data)
    small = fxdecomp.transform(gm, tight, calibration=data)
    told = fxdecomp.report(small)
    widths = {row.site: row.outputs for row in told.record.widths if row.outputs is not None}
    assert widths.keys() == {"a"}
    attempt = only_attempt(told)
    assert attempt.measured_share <= 0.75
    assert attempt.predicted_share == pytest.approx(attempt.measured_share)
    replayed = fxdecomp.transform(gm, Policy.from_plan(told.plan), calibration=data)
    pairs = zip(replayed.state_dict().values(), small.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_time_is_a_share_of_the_network_with_all_its_channels(machine: Machine) -> None:
    gm, data = traced()
    policy = Policy(budget=Latency(0.85), rules=[Rule("a", width=32)], multiple_of=4)
    attempt = only_attempt(fxdecomp.report(fxdecomp.transform(gm, policy, calibration=data)))
    sites = survey(gm).sites
    dense_s = FIXED_S + time_of([spec for site in sites for spec in site.specs])
    assert attempt.dense_s == pytest.approx(dense_s)
    assert attempt.measured_share <= 0.85
    assert attempt.predicted_share == pytest.approx(attempt.measured_share)
    assert set(machine.layers.values()) == {2400, 1344}  # the dense network's, and the narrowed one's


@pytest.mark.usefixtures("machine")
def test_a_time_that_nothing_keeps_is_refused() -> None:
    gm, data = traced()
    impossible = Policy(budget=Latency(0.01), rules=OPEN.rules, multiple_of=4)
    with pytest.raises(BudgetError, match=r"Latency\(0.01\).* cannot be met"):
        fxdecomp.transform(gm, impossible, calibration=data)


def test_what_keeps_the_time_wins_over_what_is_nearer(monkeypatch: pytest.MonkeyPatch) -> None:
    gm, data = traced()
    monkeypatch.setattr(pipeline, "found_widths", lambda *_: ({"a": 4},))
    rules = Policy(budget=MACs(0.5), rules=OPEN.rules, multiple_of=4)
    late = iter((0.1, 0.2))
    monkeypatch.setattr(pipeline, "missed", lambda *_: next(late))
    report = fxdecomp.report(fxdecomp.transform(gm, rules, calibration=data))
    assert [row.outputs for row in report.record.widths if row.outputs is not None] == [4]


def test_a_time_is_missed_by_what_is_over_the_target() -> None:
    fast, slow = (TimedAttempt(0.5, share, share, 1.0, (1 / share, 1, 2)) for share in (0.5, 0.6))
    assert missed(TimedPlan((slow, fast), 1, {}), Latency(0.5)) == 0
    assert missed(TimedPlan((slow, fast), 0, {}), Latency(0.5)) == pytest.approx(0.09)
    assert missed(TimedPlan((slow,), 0, {}), Latency(seconds=0.6)) == 0
    assert missed(TimedPlan((slow,), None, {}), Latency(0.5)) == float("inf")
    assert missed(None, MACs(0.5)) == 0
