"""`search`: the smallest network whose quality falls by no more than the user allows.

The budget of multiply-accumulates is bisected, on a logarithmic scale, between the dense network and a least
share: every step compresses the network to a share, and judges it. What is returned has been judged itself,
never interpolated.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from torch.fx import GraphModule

from fxdecomp.allocation import MACs
from fxdecomp.allocation.agreement import Agreement
from fxdecomp.calibration import Batch, Calibration
from fxdecomp.errors import PolicyError
from fxdecomp.export import benchmark, to_onnx
from fxdecomp.inputs import ExampleInputs, placeholder_values
from fxdecomp.pipeline import transform
from fxdecomp.plans import Plan
from fxdecomp.policy import Policy
from fxdecomp.progress import Progress, silent
from fxdecomp.reporting import report
from fxdecomp.search_trials import SearchResult, Trial, restored_trials, save_state

Metric = Callable[[GraphModule], float]

_log = logging.getLogger(__name__)


def search(
    gm: GraphModule,
    example_inputs: ExampleInputs,
    *,
    calibration: Calibration | Iterable[Batch] | None = None,
    metric: Metric | None = None,
    max_drop: float = 0.01,
    policy: Policy | None = None,
    evaluations: int = 6,
    least_share: float = 0.1,
    provider: str | None = None,
    threads: int = 1,
    state: str | Path | None = None,
    progress: Progress = silent,
) -> SearchResult:
    """Find the smallest network whose metric falls by no more than `max_drop`.

    Args:
        gm: A traced network, from `trace`; it is not changed.
        example_inputs: Inputs for export and timing; they are also judged on where there is no calibration.
        calibration: Unlabelled inputs. Without a `metric` the last quarter of the batches (one at least,
            where there are two) is kept for judging.
        metric: The user's measure of a network, higher is better. By default the agreement with the
            original's outputs, `1 - E||y - y'||^2 / E||y - mean(y)||^2`, which is 1 for the original itself.
        max_drop: The most that the metric may fall below that of the original.
        policy: Methods, rules and exclusions, with a budget of MACs that is replaced; `auto` by default.
        evaluations: How many compressed networks are judged.
        least_share: The smallest share of the multiply-accumulates that is considered.
        provider: Where the outcome is timed against the dense network, in turn. One that is not faster beyond
            the noise is dropped, and a note says so. None times nothing.
        threads: Threads of the timing.
        state: A file that every judged network is written to; a search of the same settings goes on from it.
        progress: Told of every judged network.

    Raises:
        PolicyError: A setting is out of range.
        FxdecompError: The state file belongs to another search.
    """
    if not (max_drop >= 0 and 0 < least_share < 1 and evaluations >= 1):
        raise PolicyError(
            f"max_drop {max_drop}, least_share {least_share}, evaluations {evaluations}: wanted at least 0, "
            "a share in (0, 1) and at least 1"
        )
    base = policy or Policy(budget=MACs(0.5))
    if not isinstance(base.budget, MACs):
        raise PolicyError("search needs a policy with a budget of MACs, such as Policy(budget=MACs(0.5))")
    data = None if calibration is None else Calibration.of(calibration)
    if metric is None:
        data, judged = _split(data, example_inputs)
        metric = Agreement(gm, judged)
    dense = report(gm)
    settings = {"max_drop": max_drop, "policy": base.to_dict(), "macs": dense.macs_before}
    trials = restored_trials(state, settings)
    if not trials:
        trials = [Trial(1.0, dense.macs_before, dense.params_before, metric(gm), accepted=True)]
    wanted = trials[0].metric - max_drop
    low, high = least_share, 1.0
    model: tuple[Trial, GraphModule] | None = None
    for step in range(evaluations):
        share = math.sqrt(low * high)
        trial = trials[step + 1] if step + 1 < len(trials) else None
        if trial is None:
            trial, small = _judge(gm, replace(base, budget=MACs(share)), data, metric, wanted)
            model = (trial, small) if small is not None and trial.accepted else model
            trials.append(trial)
            save_state(state, settings, trials)
        _log.info("share %.3f: MACs %d, metric %.4f", trial.share, trial.macs, trial.metric)
        progress("search", step + 1, evaluations)
        low, high = (low, trial.share) if trial.accepted else (trial.share, high)
    best = min((t for t in trials if t.accepted), key=lambda t: t.macs)
    if model is None or model[0] is not best:
        model = (best, _rebuilt(gm, best, data))
    result = SearchResult(model[1], tuple(trials), best, max_drop)
    return (
        result
        if provider is None or best is trials[0]
        else _timed(result, gm, example_inputs, provider, threads)
    )


def _split(data: Calibration | None, examples: ExampleInputs) -> tuple[Calibration | None, tuple[Batch, ...]]:
    """Batches to calibrate with, and batches to judge on."""
    if data is None:
        return None, (examples,)
    batches = tuple(data.batches)
    if len(batches) == 1:
        return data, batches
    kept = max(1, len(batches) // 4)
    return replace(data, batches=batches[:-kept]), batches[-kept:]


def _judge(
    gm: GraphModule, policy: Policy, data: Calibration | None, metric: Metric, wanted: float
) -> tuple[Trial, GraphModule | None]:
    assert policy.budget is not None
    share = float(policy.budget.target)
    try:
        small = transform(gm, policy, calibration=data)
    except PolicyError as error:
        return Trial(share, 0, 0, math.nan, accepted=False, problem=str(error)), None
    told = report(small)
    value = metric(small)
    trial = Trial(
        share, told.macs_after, told.params_after, value, accepted=value >= wanted, plan=told.plan.to_dict()
    )
    return trial, small


def _rebuilt(gm: GraphModule, trial: Trial, data: Calibration | None) -> GraphModule:
    if trial.plan is not None:
        return transform(gm, Policy.from_plan(Plan.from_dict(trial.plan)), calibration=data)
    return _untouched(gm)


def _untouched(gm: GraphModule) -> GraphModule:
    """The original's layers through the same passes, none of them decomposed."""
    return transform(gm, Policy(method="svd", rank=1, exclude=["*"]))


def _timed(
    result: SearchResult, gm: GraphModule, example_inputs: ExampleInputs, provider: str, threads: int
) -> SearchResult:
    """The result with its measured speed; the original's layers where that is no gain."""
    dense = _untouched(gm)
    inputs = placeholder_values(gm, example_inputs)
    with tempfile.TemporaryDirectory() as folder:
        paths = {"dense": Path(folder, "dense.onnx"), "small": Path(folder, "small.onnx")}
        to_onnx(dense, inputs, paths["dense"])
        to_onnx(result.model, inputs, paths["small"])
        times = benchmark(paths, providers=[provider], threads=threads, profile=False)
    ratio = times.ratio("dense", "small")
    measured = replace(result, speedup=(ratio.value, ratio.low, ratio.high))
    told = f"measured on {provider}, {threads} thread(s): {ratio} of the dense network's speed"
    if ratio.low > 1:
        return replace(measured, notes=(told,))
    dropped = f"{told}; that is not faster beyond the noise, so the original's layers are kept"
    return replace(measured, model=dense, best=result.trials[0], notes=(dropped,))
