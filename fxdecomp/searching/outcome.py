"""What a search returns: the network that it took, timed, or the original's layers."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from torch.fx import GraphModule

from fxdecomp.export import benchmark, to_onnx
from fxdecomp.graphs.inputs import ExampleInputs, placeholder_values
from fxdecomp.graphs.records import attach_record, record_of
from fxdecomp.latency.quickest_options import timed_at
from fxdecomp.outcomes import Skipped
from fxdecomp.pipeline import transform
from fxdecomp.policy import Latency, Policy
from fxdecomp.progress import Progress
from fxdecomp.reasons import Reason
from fxdecomp.searching.trials import SearchResult


def untouched(gm: GraphModule) -> GraphModule:
    """The original's layers through the same passes, none of them decomposed."""
    return transform(gm, Policy(method="svd", rank=1, exclude=["*"]))


def left_for(gm: GraphModule, policy: Policy, reason: Reason) -> GraphModule:
    """A graph whose record gives this reason for the layers that the search left, but its policy selects."""
    record = record_of(gm)
    assert record is not None  # transform made it
    outcomes = tuple(
        replace(outcome, reason=reason)
        if isinstance(outcome, Skipped)
        and outcome.reason is Reason.NOT_SELECTED
        and policy.select(outcome.site) is not None
        else outcome
        for outcome in record.outcomes
    )
    attach_record(gm, replace(record, outcomes=outcomes))
    return gm


def timed(
    result: SearchResult,
    gm: GraphModule,
    example_inputs: ExampleInputs,
    where: Latency,
    progress: Progress,
) -> SearchResult:
    """The result with its measured speed; the original's layers where that is no gain."""
    dense = untouched(gm)
    inputs = placeholder_values(gm, example_inputs)
    with tempfile.TemporaryDirectory() as folder:
        paths = {"dense": Path(folder, "dense.onnx"), "small": Path(folder, "small.onnx")}
        to_onnx(dense, inputs, paths["dense"])
        to_onnx(result.model, inputs, paths["small"])
        times = benchmark(paths, **timed_at(where), profile=False, progress=progress)
    ratio = times.ratio("dense", "small")
    measured = replace(result, speedup=(ratio.value, ratio.low, ratio.high))
    speed = f"measured on {where.provider}, {where.threads} thread(s): {ratio} of the dense network's speed"
    if ratio.low > 1:
        return replace(measured, notes=(speed, *result.notes))
    dropped = f"nothing worth changing: {speed}, which is not faster beyond the noise"
    return replace(measured, model=dense, best=result.trials[0], notes=(dropped, *result.notes))
