"""By what a search judges networks: the user's metric, or the agreement with the original's outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, SupportsFloat

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx import GraphModule

from fxdecomp.allocation.agreement import Agreement
from fxdecomp.calibration import Batch, Calibration
from fxdecomp.errors import PolicyError
from fxdecomp.graphs.copies import copy_owning_tensors
from fxdecomp.graphs.inputs import ExampleInputs, call_arguments
from fxdecomp.recovery.checkpoints import name_of

Metric = Callable[[GraphModule], SupportsFloat | Tensor | Sequence[SupportsFloat]]
"""One number, or one score an input, whose mean counts."""


def default_metric(
    gm: GraphModule, data: Calibration | None, examples: ExampleInputs
) -> tuple[Agreement, Calibration | None, tuple[str]]:
    """The metric of a search that is given none.

    Args:
        gm: The original.
        data: The user's calibration.
        examples: What is judged on without it.

    Returns:
        The agreement, the calibration that is left, and a sentence that says on what it judges.

    Raises:
        PolicyError: There is nothing to judge by.
    """
    count = 0 if data is None else len(tuple(data.batches))
    if data is None:
        _check_varied(examples)
    left, judged = _split(data, examples)
    return _agreement_on(gm, judged, first=max(0, count - len(judged))), left, (_basis(count),)


def scores_by(metric: Metric, gm: GraphModule) -> Tensor:
    """What a metric says of a network: one number, or one score an input, [N].

    Raises:
        PolicyError: It is neither.
    """
    judged = gm if isinstance(metric, Agreement) else copy_owning_tensors(gm, gm).eval()
    return scores_of(metric, metric(judged))


def scores_of(metric: Metric, value: Any) -> Tensor:
    """What a metric gave, as numbers in double precision, [N].

    Raises:
        PolicyError: It is neither a number nor a row of numbers.
    """
    problem = f"metric {name_of(metric)} gives {value!r}, wanted one number, or one for each input"
    try:
        scores = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError):
        try:
            scores = torch.tensor(float(value), dtype=torch.float64)  # of a kind that torch does not know
        except (TypeError, ValueError) as error:
            raise PolicyError(problem) from error
    if scores.dim() > 1 or not scores.numel():
        raise PolicyError(problem)
    return scores.reshape(-1)


def judged_by(metric: Metric, gm: GraphModule) -> float:
    """What a metric says of a network, as a plain number; NaN, which no search accepts, for infinity too.

    Raises:
        PolicyError: It is neither a number nor a row of numbers.
    """
    return mean_of(scores_by(metric, gm))


def mean_of(scores: Tensor) -> float:
    """The mean of scores, NaN where it is not finite."""
    number = float(scores.mean())
    return number if math.isfinite(number) else math.nan


def _agreement_on(gm: GraphModule, batches: tuple[Batch, ...], *, first: int) -> Agreement:
    agreement = Agreement(gm, batches, first=first)
    if agreement.is_blind:
        raise PolicyError("the network has no floating-point output to compare; give search a metric=")
    return agreement


def _split(data: Calibration | None, examples: ExampleInputs) -> tuple[Calibration | None, tuple[Batch, ...]]:
    """Batches to calibrate with, and batches to judge on."""
    if data is None:
        return None, (examples,)
    batches = tuple(data.batches)
    if len(batches) == 1:
        return data, batches
    kept = max(1, len(batches) // 4)
    return replace(data, batches=batches[:-kept]), batches[-kept:]


def _basis(batches: int) -> str:
    """On what a search without a metric judges, for the reader."""
    judged = "judged by the agreement with the original's outputs on"
    if batches > 1:
        kept = max(1, batches // 4)
        return f"{judged} the last {kept} of {batches} calibration batches, to which nothing is fitted"
    if batches == 1:
        return f"{judged} the calibration batch itself; give more batches, or a metric"
    return f"{judged} the example inputs alone; give calibration, or a metric"


def _check_varied(examples: ExampleInputs) -> None:
    """Raise where the example inputs, which would be all there is to judge by, hold one number only."""
    values = [leaf for leaf in pytree.tree_leaves(call_arguments(examples)) if isinstance(leaf, Tensor)]
    if all(bool((leaf == leaf.flatten()[0]).all()) for leaf in values if leaf.numel()):
        raise PolicyError(
            "search has neither metric nor calibration, and the example inputs hold one number only: nothing "
            "to judge networks by; give calibration=batches, or a metric="
        )
