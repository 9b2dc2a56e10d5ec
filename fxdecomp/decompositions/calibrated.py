"""The factors of any method for a layer whose inputs are known.

The iteration of `weighted` starts from the method's own factors, once of the bare weight and once of the
whitened one, and the better outcome is taken: never worse than weight-only on the calibration data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fxdecomp.decompositions.problem import Problem
from fxdecomp.fitting.weighted import Metric, compose, refine, tail_length

if TYPE_CHECKING:
    from fxdecomp.decompositions.base import Decomposition


def calibrated_factors(method: Decomposition, problem: Problem, rank: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The weights of the stages, fitted to the moments of the layer's inputs.

    Args:
        method: The decomposition.
        problem: One group, with moments.
        rank: Its rank.

    Cost: `rank d^2` for every step of the iteration, d the size of an input patch.
    """
    assert problem.moments is not None
    plain = method.factors(Problem(problem.weight, problem.spec), rank)
    if not output_error(problem, torch.zeros_like(problem.weight))[1] > 0:
        return plain
    stages = method.stage_specs(problem.spec, rank)
    starts = (plain, method.factors(problem, rank))
    if tail_length(stages) == len(stages):  # the second of them is the optimum
        return min(starts, key=lambda weights: output_error(problem, compose(weights, stages))[0])
    return refine(Metric.of(problem.weight, problem.moments), stages, starts)


def output_error(problem: Problem, composed: Tensor) -> tuple[float, float]:
    """The error of the output and its power, `tr (W - W') Sigma (W - W')^T` and `tr W Sigma W^T`."""
    assert problem.moments is not None
    rest = (problem.weight - composed).flatten(1)
    lost = problem.moments.output_variance(rest)
    return max(lost, 0.0), problem.moments.output_variance(problem.weight.flatten(1))
