import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import fxdecomp
from fxdecomp import Params, Policy, PolicyError
from fxdecomp.allocation.agreement import Agreement
from fxdecomp.allocation.floor import least_macs_share
from fxdecomp.calibration import Calibration
from fxdecomp.errors import BudgetError
from fxdecomp.graphs.records import attach_record, record_of
from fxdecomp.graphs.timed_plans import TimedAttempt, TimedPlan
from fxdecomp.searching.searcher import search
from fxdecomp.searching.trials import SearchResult, Trial, next_share
from tests.nets import targets


def network(width: int = 48) -> GraphModule:
    """Layers of rank 8 with a little noise, so that there is something to gain."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)).eval()
    with torch.no_grad():
        low = torch.randn(width, 8) @ torch.randn(8, width * 9) / width
        model[2].weight.copy_(low.reshape(width, width, 3, 3) + 1e-3 * torch.randn(width, width, 3, 3))
    return fxdecomp.trace(model, torch.randn(2, 3, 12, 12))


@pytest.fixture(scope="module")
def gm() -> GraphModule:
    return network()


INPUTS = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
POLICY = Policy(made_up=False, budget=fxdecomp.MACs(0.5), method="channel_svd")


def test_the_outcome_was_judged_and_holds_the_promise(gm: GraphModule) -> None:
    found = search(gm, INPUTS, policy=POLICY, max_drop=0.02, evaluations=4)
    metric = Agreement(gm, [INPUTS])
    assert metric(gm) == 1.0
    assert found.best.accepted
    assert found.best.metric >= 0.98
    assert metric(found.model) == found.best.metric
    assert fxdecomp.report(found.model).macs_after == found.best.macs < 0.5 * found.trials[0].macs
    assert found.best.macs == min(trial.macs for trial in found.trials if trial.accepted)
    assert len(found.trials) == 5
    for trial in found.trials:
        assert trial.accepted == (not trial.problem and trial.metric >= 0.98)


def test_a_policy_that_does_not_fit_the_network_is_an_error(gm: GraphModule) -> None:
    with pytest.raises(PolicyError, match=r"pattern 'typo\*' matches no layer"):
        search(gm, INPUTS, policy=replace(POLICY, exclude=("typo*",)), max_drop=0.02, evaluations=2)


def test_every_network_is_trained_before_it_is_judged(gm: GraphModule, tmp_path: Path) -> None:
    batches = torch.randn(32, 3, 12, 12, generator=torch.Generator().manual_seed(2)).split(8)

    def recovery(small: GraphModule) -> GraphModule:
        return fxdecomp.recover(small, gm, batches, block_steps=20, steps=10)

    options = {"policy": POLICY, "max_drop": 0.02, "evaluations": 2}
    plain = search(gm, INPUTS, **options)
    state = tmp_path / "state.json"
    found = search(gm, INPUTS, recovery=recovery, state=state, **options)
    assert found.trials[1].share == plain.trials[1].share
    assert found.trials[1].metric > plain.trials[1].metric
    assert "recovery" in record_of(found.model).notes[-1]
    assert Agreement(gm, [INPUTS])(found.model) == found.best.metric
    resumed = search(gm, INPUTS, recovery=recovery, state=state, **options)
    assert torch.equal(resumed.model(INPUTS), found.model(INPUTS))
    search(gm, INPUTS, state=state, **options)
    assert len(list(tmp_path.iterdir())) == 2  # without recovery it is another search


def test_no_loss_allowed_gives_the_original_back(gm: GraphModule) -> None:
    found = search(
        gm,
        INPUTS,
        metric=lambda module: float(targets(module) == targets(gm)),
        max_drop=0.0,
        policy=POLICY,
        evaluations=2,
    )
    assert found.best is found.trials[0]
    assert "no smaller network that was judged keeps the metric" in found.notes[0]
    assert torch.allclose(found.model(INPUTS), gm(INPUTS))
    assert not fxdecomp.report(found.model).modified


def test_the_frontier_rises_with_cost(gm: GraphModule) -> None:
    found = search(gm, INPUTS, policy=POLICY, max_drop=0.1, evaluations=4)
    costs = [trial.macs for trial in found.frontier]
    values = [trial.metric for trial in found.frontier]
    assert costs == sorted(set(costs), reverse=True)
    assert values == sorted(set(values), reverse=True)
    assert not any(math.isnan(value) for value in values)


class Between(nn.Module):
    """Two layers, the same for every `function` between them."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.function = nn.Linear(32, 32), nn.Linear(32, 16), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.function(self.first(x)))


def test_a_state_tells_networks_of_the_same_weights_and_ways_to_calibrate_apart(tmp_path: Path) -> None:
    x = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
    state = tmp_path / "state.json"

    def go(function: Any, data: Calibration) -> None:
        gm = fxdecomp.trace(Between(function), x)
        search(gm, x, calibration=data, max_drop=1.0, evaluations=1, state=state)

    data = Calibration([x, x + 1])
    go(torch.relu, data)
    go(torch.relu, data)
    for function, other in (
        (torch.sin, data),
        (nn.ReLU(), data),
        (torch.relu, replace(data, samples=7)),
        (torch.relu, replace(data, seed=1)),
        (torch.relu, replace(data, refit=False)),
        (torch.relu, replace(data, batches=[x, x + 2])),
    ):
        before = set(tmp_path.iterdir())
        go(function, other)
        assert len(set(tmp_path.iterdir()) - before) == 1


class Judge:
    """The agreement; counts what it judges, and is killed before it judges one more than `most`."""

    def __init__(self, gm: GraphModule, most: int = 99) -> None:
        self.agreement, self.most, self.count = Agreement(gm, [INPUTS]), most, 0

    def __call__(self, module: GraphModule) -> float:
        if self.count == self.most:
            raise KeyboardInterrupt
        self.count += 1
        return self.agreement(module)


def test_a_killed_search_goes_on_where_it_was(gm: GraphModule, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    options = {"policy": POLICY, "max_drop": 0.02, "evaluations": 4}
    with pytest.raises(KeyboardInterrupt):
        search(gm, INPUTS, metric=Judge(gm, 3), state=state, **options)  # type: ignore[arg-type]
    judges = Judge(gm), Judge(gm)
    resumed = search(gm, INPUTS, metric=judges[0], state=state, **options)  # type: ignore[arg-type]
    whole = search(gm, INPUTS, metric=judges[1], **options)  # type: ignore[arg-type]
    assert (judges[0].count, judges[1].count) == (2, 5)
    assert resumed.to_dict() == whole.to_dict()
    assert torch.equal(resumed.model(INPUTS), whole.model(INPUTS))


def told(module: GraphModule) -> dict[str, Any]:
    record = record_of(module)
    assert record is not None
    return record.to_dict()


def test_a_search_that_goes_on_gives_what_an_unbroken_one_does(gm: GraphModule, tmp_path: Path) -> None:
    batches = [torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(k)) for k in range(4)]
    options: dict[str, Any] = {
        "policy": Policy(budget=fxdecomp.MACs(0.5), method="channel_svd"),
        "calibration": batches,
        "max_drop": 0.02,
        "evaluations": 3,
    }
    whole = search(gm, INPUTS, metric=Judge(gm), **options)
    other = whole.model.state_dict()
    for judged in (2, 3, 4):  # killed before the second, after the second, never
        state = tmp_path / f"{judged}.json"
        with suppress(KeyboardInterrupt):
            search(gm, INPUTS, metric=Judge(gm, judged), state=state, **options)
        resumed = search(gm, INPUTS, metric=Judge(gm), state=state, **options)
        assert resumed.to_dict() == whole.to_dict()
        assert told(resumed.model) == told(whole.model)
        assert all(torch.equal(tensor, other[name]) for name, tensor in resumed.model.state_dict().items())


def test_another_search_gets_a_state_of_its_own(gm: GraphModule, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    judge = Judge(gm)
    options = {"policy": POLICY, "max_drop": 0.02, "evaluations": 1}
    search(gm, INPUTS, metric=judge, state=state, **options)  # type: ignore[arg-type]
    for model, inputs, other in (
        (gm, INPUTS, options | {"max_drop": 0.5}),
        (gm, INPUTS, options | {"policy": Policy(budget=fxdecomp.MACs(0.5), method="tucker2")}),
        (gm, INPUTS + 1, options),
        (gm, INPUTS, options | {"calibration": [INPUTS]}),
        (network(40), INPUTS, options),
        (gm, INPUTS, options | {"metric": None}),
    ):
        before, text = set(tmp_path.iterdir()), state.read_text()
        first = search(model, inputs, state=state, **{"metric": judge} | other)  # type: ignore[arg-type]
        (own,) = set(tmp_path.iterdir()) - before
        assert own.name.startswith("state-")
        assert state.read_text() == text
        count = judge.count
        again = search(model, inputs, state=state, **{"metric": judge} | other)  # type: ignore[arg-type]
        assert judge.count == count  # what is finished is read, not judged again
        assert again.to_dict() == first.to_dict()
    state.write_text("{")
    with pytest.raises(fxdecomp.FxdecompError, match="no state of a search"):
        search(gm, INPUTS, metric=judge, state=state, policy=POLICY)


def test_a_state_that_cannot_be_written_is_told_before_the_work(gm: GraphModule, tmp_path: Path) -> None:
    judge = Judge(gm)
    with pytest.raises(fxdecomp.FxdecompError, match="does not exist; create it first"):
        search(gm, INPUTS, metric=judge, state=tmp_path / "no" / "state.json", policy=POLICY)
    assert judge.count == 0


def test_a_batch_to_judge_on_that_does_not_fit_is_told_by_its_place(gm: GraphModule) -> None:
    data = [INPUTS] * 5
    with pytest.raises(fxdecomp.CalibrationError, match="calibration batch 4 does not fit"):
        search(gm, INPUTS, calibration=[*data[:4], (INPUTS, torch.zeros(2))])


def test_the_result_is_data(gm: GraphModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxdecomp.searching.searcher.least_macs_share", lambda gm, policy: 0.0)
    found = search(gm, INPUTS, policy=POLICY, max_drop=0.0, evaluations=2, least_share=1e-9)
    assert isinstance(found, SearchResult)
    assert "cannot be met" in found.trials[1].problem
    assert found.trials[2].problem == ""  # no budget below what the refusal told is tried
    assert found.notes == (
        "nothing worth changing: no smaller network that was judged keeps the metric",
        "judged by the agreement with the original's outputs on the example inputs alone; give calibration, "
        "or a metric",
    )
    assert "nan" not in str(found)
    found.save(tmp_path / "search.json")
    assert json.loads((tmp_path / "search.json").read_text())["trials"][1]["metric"] is None
    assert "taken" in str(found)


def test_what_is_not_faster_is_dropped(gm: GraphModule, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    import fxdecomp.searching.outcome as module

    class Times:
        def __init__(self, low: float) -> None:
            self.low = low

        def ratio(self, slow: str, fast: str) -> object:
            return fxdecomp.export.Ratio(1.1, self.low, 1.2)

    time_by_macs(monkeypatch)
    for low, kept in ((0.99, False), (1.05, True)):
        monkeypatch.setattr(module, "benchmark", lambda *_, low=low, **__: Times(low))
        found = search(
            gm, INPUTS, policy=POLICY, max_drop=0.02, evaluations=1, provider="CPUExecutionProvider"
        )
        assert found.speedup == (1.1, low, 1.2)
        assert fxdecomp.report(found.model).modified == kept
        assert ("not faster beyond the noise" in found.notes[0]) != kept


@pytest.mark.parametrize("options", [{"max_drop": -1.0}, {"least_share": 1.0}, {"evaluations": 0}])
def test_settings_out_of_range_raise(gm: GraphModule, options: dict[str, float]) -> None:
    with pytest.raises(PolicyError, match="wanted"):
        search(gm, INPUTS, **options)  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match="budget that it can replace"):
        search(gm, INPUTS, policy=Policy(budget=Params(0.5)))


@pytest.mark.parametrize("kind", [np.float32, np.float64, torch.tensor])
def test_a_metric_may_give_any_kind_of_number(
    gm: GraphModule, tmp_path: Path, kind: Callable[[float], Any]
) -> None:
    options = {"policy": POLICY, "max_drop": 0.5, "evaluations": 1}
    state = tmp_path / "state.json"
    judge = Agreement(gm, [INPUTS])
    found = search(gm, INPUTS, metric=lambda each: kind(judge(each)), state=state, **options)  # type: ignore[arg-type]
    assert {(type(trial.metric), type(trial.accepted)) for trial in found.trials} == {(float, bool)}
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["trials"][0]["metric"] == 1.0


def test_a_metric_without_a_number_raises_before_the_work(
    gm: GraphModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxdecomp.searching.searcher.transform", None)
    for value in (None, "good", torch.ones(1, 2), []):
        with pytest.raises(PolicyError, match=r"metric tests.*:.*<lambda> gives .* wanted one number"):
            search(gm, INPUTS, metric=lambda _, value=value: value)
    for value in (math.nan, math.inf):
        with pytest.raises(PolicyError, match="of the original is not finite"):
            search(gm, INPUTS, metric=lambda _, value=value: value)


def test_a_network_whose_metric_is_not_finite_is_rejected(gm: GraphModule) -> None:
    judge = Judge(gm)
    found = search(
        gm,
        INPUTS,
        metric=lambda each: judge(each) if targets(each) == targets(gm) else math.inf,
        max_drop=0.5,
        evaluations=1,
        policy=POLICY,
    )
    assert [trial.accepted for trial in found.trials] == [True, False]
    assert found.frontier == found.trials[:1]


def test_the_next_share_lies_where_the_losses_point_and_off_the_ends() -> None:
    dense = Trial(1.0, 100, 10, 1.0, accepted=True)
    assert next_share([dense], 0.25, 0.1) == pytest.approx(0.5)
    unmet = Trial(0.25, 0, 0, math.nan, accepted=False, problem="cannot be met")
    assert next_share([dense, unmet], 0.1, 0.1) == pytest.approx(0.5)
    for loss, place in ((0.2, 0.5), (0.11, 0.75), (9.0, 0.25), (0.16, 0.1 / 0.16)):
        rejected = Trial(0.25, 20, 5, 1.0 - loss, accepted=False)
        assert next_share([dense, rejected], 0.1, 0.1) == pytest.approx(0.25**place)
    better = Trial(0.6, 60, 8, 0.98, accepted=True)
    low, high = 0.25, 0.6
    assert low < next_share([dense, rejected, better], 0.1, 0.1) < high


def test_an_end_that_stays_counts_half_with_every_further_trial_on_the_other_side() -> None:
    dense = Trial(1.0, 100, 10, 1.0, accepted=True)
    trials = [dense, Trial(0.25, 20, 5, 0.8, accepted=False)]
    places = []
    for above in (1.0, 0.8, 0.7, 0.6):
        share = next_share(trials, 0.1, 0.1)
        places.append(math.log(share / above) / math.log(0.25 / above))
        trials.append(Trial({1.0: 0.8, 0.8: 0.7, 0.7: 0.6, 0.6: 0.5}[above], 60, 8, 1.0, accepted=True))
    assert places == pytest.approx([0.5, 0.5, 2 / 3, 0.75])  # room 0.1 against 0.1, 0.1, 0.05, 0.025


def time_by_macs(monkeypatch: pytest.MonkeyPatch) -> list[fxdecomp.Latency]:
    """Let a budget of time be one of ever more multiply-accumulates; returns what is asked for."""
    asked: list[fxdecomp.Latency] = []

    def fake(gm: GraphModule, policy: Policy, **options: object) -> GraphModule:
        if not isinstance(policy.budget, fxdecomp.Latency):
            return fxdecomp.transform(gm, policy)
        asked.append(policy.budget)
        small = fxdecomp.transform(gm, replace(POLICY, budget=fxdecomp.MACs(0.3 + 0.1 * len(asked))))
        record = record_of(small)
        assert record is not None
        assert policy.budget.target is not None
        share = policy.budget.target + 0.01
        attempt = TimedAttempt(share, share, share, 1.0, (1 / share,) * 3)
        latency = TimedPlan((attempt,), 0, {"X": {}})
        attach_record(small, replace(record, latency=latency))
        return small

    monkeypatch.setattr("fxdecomp.searching.searcher.transform", fake)
    return asked


def test_time_is_what_counts_where_there_is_a_provider(
    gm: GraphModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fxdecomp.searching.searcher as module

    asked = time_by_macs(monkeypatch)
    monkeypatch.setattr(module, "timed", lambda result, *_: result)
    found = search(gm, INPUTS, policy=POLICY, max_drop=0.5, evaluations=2, provider="X", threads=3)
    assert [(budget.provider, budget.threads) for budget in asked] == [("X", 3)] * 2
    assert [trial.time_share for trial in found.trials] == [1.0, *(b.target + 0.01 for b in asked)]
    assert found.best.time_share == min(t.time_share for t in found.trials if t.time_share)
    assert [found.trials[i] for i in found.to_dict()["frontier"]] == list(found.frontier)
    assert fxdecomp.report(found.model, search=found).frontier is not None


def test_a_search_by_time_that_is_over_is_told_as_it_was_measured(
    gm: GraphModule, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import fxdecomp.searching.searcher as module

    asked = time_by_macs(monkeypatch)
    monkeypatch.setattr(module, "timed", lambda result, *_: result)
    first, again = (
        search(
            gm, INPUTS, policy=POLICY, max_drop=0.5, evaluations=2, provider="X", state=tmp_path / "s.json"
        )
        for _ in range(2)
    )
    assert len(asked) == 2
    assert told(again.model) == told(first.model)
    assert torch.equal(again.model(INPUTS), first.model(INPUTS))


def test_what_cannot_be_made_faster_is_left_alone_and_said(
    gm: GraphModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fxdecomp.searching.searcher as module

    def refuse(gm: GraphModule, policy: Policy, **_: object) -> GraphModule:
        if isinstance(policy.budget, fxdecomp.Latency):
            raise BudgetError("Latency cannot be met")
        return fxdecomp.transform(gm, policy)

    monkeypatch.setattr(module, "transform", refuse)
    found = search(gm, INPUTS, policy=POLICY, evaluations=2, provider="CPUExecutionProvider")
    assert not fxdecomp.report(found.model).modified
    assert "nothing worth changing" in found.notes[0]
    assert torch.equal(found.model(INPUTS), gm(INPUTS))


def test_no_share_below_what_the_smallest_chains_take_is_tried(gm: GraphModule) -> None:
    floor = least_macs_share(gm, POLICY)
    with pytest.raises(BudgetError) as refused:
        fxdecomp.transform(gm, replace(POLICY, budget=fxdecomp.MACs(floor / 2)))
    assert refused.value.least_share is not None
    assert floor <= refused.value.least_share < 2 * floor
    found = search(gm, INPUTS, policy=POLICY, max_drop=2.0, evaluations=5, least_share=1e-6)
    assert [trial.problem for trial in found.trials] == [""] * 6
    assert min(trial.share for trial in found.trials) > floor


def test_a_network_that_nothing_makes_smaller_is_not_searched() -> None:
    x = torch.randn(4, 2, 64, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Conv1d(2, 2, 1), nn.Conv1d(2, 2, 3, groups=2)).eval()
    judged: list[GraphModule] = []
    found = search(fxdecomp.trace(model, x), x, metric=lambda each: float(len(judged.append(each) or judged)))
    assert len(judged) == 1
    assert len(found.trials) == 1
    assert found.notes == (
        "nothing worth changing: the smallest chains of all layers together take 100.0% of the dense network",
    )
    assert {o.reason for o in fxdecomp.report(found.model).skipped} == {fxdecomp.Reason.NOT_KEPT}


def test_a_metric_that_trains_changes_nothing_of_the_callers() -> None:
    x = torch.randn(2, 8, 9, 9, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(
        nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 4, 1)
    )
    gm = fxdecomp.trace(net.eval(), x)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    modes: list[bool] = []

    def metric(module: GraphModule) -> float:
        modes.append(module.training)
        module.train()(x + 5)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
        return 1.0

    found = search(gm, x, metric=metric, evaluations=1)
    assert modes == [False, False]
    assert not gm.training
    assert not found.model.training
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert torch.equal(gm(x), net(x))
    assert fxdecomp.report(found.model).remarks[:1] != ("1: left in the graph, it is in train mode",)
    assert bool(found.model(x).any())


def test_what_is_judged_on_is_said(gm: GraphModule) -> None:
    options = {"policy": POLICY, "max_drop": 0.5, "evaluations": 1}
    told = "judged by the agreement with the original's outputs on "
    five = search(gm, INPUTS, calibration=[INPUTS] * 5, **options)  # type: ignore[arg-type]
    assert five.notes == (f"{told}the last 1 of 5 calibration batches, to which nothing is fitted",)
    one = search(gm, INPUTS, calibration=[INPUTS], **options)  # type: ignore[arg-type]
    assert one.notes == (f"{told}the calibration batch itself; give more batches, or a metric",)
    (number,) = search(gm, INPUTS, metric=Judge(gm), **options).notes  # type: ignore[arg-type]
    assert number.startswith("the metric is one number: on other inputs more may be lost")
    with pytest.raises(PolicyError, match="neither metric nor calibration"):
        search(gm, torch.zeros_like(INPUTS), **options)  # type: ignore[arg-type]
    assert search(gm, torch.zeros_like(INPUTS), metric=Judge(gm), **options).best.accepted  # type: ignore[arg-type]
