"""How much of a layer's output a chain can keep when its last stages are fitted to the layer's inputs.

With the stages before the tail held, the tail's best error is known (see `decompositions.weighted`): of the
output's variance `tr W Sigma W^T` it keeps `tr K C^-1 K^T`. With `C = L L^T` that is the squared norm of
`L^-1 K^T`. Where the heads of smaller ranks are the leading channels of the largest one, so are the rows of
this matrix: one factorisation serves all ranks. A core with a pointwise stage behind it keeps the leading
eigenvalues of `K C^-1 K^T`: all output ranks at once (reduced-rank regression, Izenman 1975).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fxdecomp.decompositions import Decomposition, Problem
from fxdecomp.decompositions.tucker2 import Tucker2
from fxdecomp.fitting.weighted import Metric, tail_equations
from fxdecomp.layers import StageSpec

Rank = tuple[int, ...]


def tail_spread(
    metric: Metric, stages: tuple[StageSpec, ...], weights: tuple[Tensor, ...], index: int
) -> Float[Tensor, "rows out"]:
    """`L^-1 K^T` in the unit of `metric.total`.

    Args:
        metric: Of one group.
        stages: The geometry of its chain.
        weights: The chain's, of which those of the tail do not matter.
        index: The first stage of the tail.

    Cost: `rows d^2`, d the size of an input patch, rows what the first stage of the tail sees.
    """
    lower, K = tail_equations(metric, stages, weights, index)
    spread: Tensor = torch.linalg.solve_triangular(lower, K.T, upper=False)
    return spread


def _nested_spread(method: Decomposition, problem: Problem, rank: Rank) -> tuple[Tensor, float, int]:
    """The spread behind the first stage of a rank, the output's variance, and the rows a channel has."""
    metric = metric_of(problem)
    stages = method.stage_specs(problem.spec, rank)
    spread = tail_spread(metric, stages, method.factors(problem, rank), 1)
    return spread * math.sqrt(metric.scale), metric.total * metric.scale, math.prod(stages[1].spec.kernel)


def metric_of(problem: Problem) -> Metric:
    """The metric of a problem with moments. Cost: `out d^2`."""
    assert problem.moments is not None
    return Metric.of(problem.weight, problem.moments)


def tucker2_errors(
    method: Tucker2, problems: Sequence[Problem], outs: Sequence[int], ins: Sequence[int]
) -> dict[Rank, float]:
    """Errors of all pairs of ranks, with the inputs' leading channels as the head."""
    kept = dict.fromkeys(itertools.product(outs, ins), 0.0)
    whole = 0.0
    for problem in problems:
        spread, total, taps = _nested_spread(method, problem, method.rank_limits(problem.spec))
        whole += total
        for q in ins:
            rows = spread[: q * taps]
            values = torch.linalg.eigvalsh(rows.T @ rows).flip(0).cumsum(0)
            for p in outs:
                kept[p, q] += float(values[p - 1])
    return {rank: _lost(share, whole) for rank, share in kept.items()}


def nested_errors(
    method: Decomposition, problems: Sequence[Problem], ranks: Sequence[int]
) -> dict[Rank, float]:
    """Errors of a method of two stages and one rank, whose first stages are nested."""
    kept = dict.fromkeys(ranks, 0.0)
    whole = 0.0
    for problem in problems:
        spread, total, taps = _nested_spread(method, problem, (max(ranks),))
        whole += total
        sums = spread.square().sum(1).cumsum(0)
        for rank in ranks:
            kept[rank] += float(sums[rank * taps - 1])
    return {(rank,): _lost(share, whole) for rank, share in kept.items()}


def chain_error(stages: tuple[StageSpec, ...], chains: Iterable[tuple[Metric, tuple[Tensor, ...]]]) -> float:
    """The error of a chain from its weights in each group; the last stage is fitted anew."""
    kept = whole = 0.0
    for metric, weights in chains:
        kept += float(tail_spread(metric, stages, weights, len(stages) - 1).square().sum()) * metric.scale
        whole += metric.total * metric.scale
    return _lost(kept, whole)


def _lost(kept: float, whole: float) -> float:
    return max(1.0 - kept / whole, 0.0) if whole > 0 else 0.0
