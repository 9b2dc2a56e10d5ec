"""The error of many ranks of a method at once, from spectra and projections, without a factorisation each.

With `s` the singular values of the unfolding that a method truncates, relative to `||W||^2 = sum s^2`,

    e^2(r) = sum_{i > r} s_i^2                 exact (Eckart and Young 1936)

with calibration too, where the whole chain is the truncation: the spectrum is then the whitened one. For
other methods the last stages are fitted to the layer's inputs behind the stages that the method starts from
(`fitting.tails`).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from fxdecomp.chains import Chain
from fxdecomp.decompositions.base import Decomposition
from fxdecomp.decompositions.problem import Problem
from fxdecomp.decompositions.rank_grid import Rank, RankGrid
from fxdecomp.fitting.tails import tail_spread
from fxdecomp.layers import LayerSpec


def truncation_errors(
    method: Decomposition, problems: Sequence[Problem], grid: RankGrid
) -> dict[Rank, float]:
    """Errors of a method that truncates one spectrum. Cost: the spectrum."""
    (limit,) = method.rank_limits(problems[0].spec)
    tails = relative_tails([method.spectra(problem)[0].singular_values for problem in problems])
    return {(rank,): float(tails[min(rank, len(tails) - 1)]) for rank in grid.along(limit, grid.single)}


def nested_errors(method: Decomposition, problems: Sequence[Problem], grid: RankGrid) -> dict[Rank, float]:
    """Output errors of a method of two stages and one rank, whose first stages are nested.

    Of ranks that save something alone: behind more channels the second stage costs the most to fit.
    """
    most = saving_ranks(method, problems[0].spec)
    ranks = grid.along(most + 1, grid.single)
    kept = dict.fromkeys(ranks, 0.0)
    whole = 0.0
    for problem in problems if ranks else ():
        made = partial(nested_spread, method, problem, (most,))
        spread, total, taps = problem.once(f"{method.name} spread", made)
        whole += total
        sums = spread.square().sum(1).cumsum(0)
        for rank in ranks:
            kept[rank] += float(sums[rank * taps - 1])
    return {(rank,): lost_share(share, whole) for rank, share in kept.items()}


def saving_ranks(method: Decomposition, spec: LayerSpec) -> int:
    """How many ranks of a method of one rank, from 1 on, take fewer multiply-accumulates or weights."""
    (limit,) = method.rank_limits(spec)

    def saves_nothing(rank: int) -> bool:
        form = method.form(spec, (rank,))
        return form.macs >= spec.macs and form.params >= spec.params

    return bisect_left(range(1, limit), True, key=saves_nothing)


def nested_spread(method: Decomposition, problem: Problem, rank: Rank) -> tuple[Tensor, float, int]:
    """The spread behind the first stage of a rank, the output's variance, and the rows a channel has."""
    metric = problem.metric
    chain = Chain(method.form(problem.spec, rank), method.factors(problem, rank))
    spread = tail_spread(metric, chain, 1)
    taps = math.prod(chain.form.stages[1].spec.kernel)
    return spread * math.sqrt(metric.scale), metric.total * metric.scale, taps


def tail_error(problems: Sequence[Problem], chains: Iterable[Chain]) -> float:
    """The output error of the chains of all groups once their last stages are fitted."""
    kept = whole = 0.0
    for problem, chain in zip(problems, chains, strict=True):
        metric = problem.metric
        spread = tail_spread(metric, chain, len(chain.weights) - 1)
        kept += float(spread.square().sum()) * metric.scale
        whole += metric.total * metric.scale
    return lost_share(kept, whole)


def is_calibrated(problems: Sequence[Problem]) -> bool:
    """Whether errors are those of the output."""
    return problems[0].moments is not None


def relative_tails(values: Iterable[Float[Tensor, " n"]]) -> Float[Tensor, " m"]:
    """`tail[r]`: the share of the summed squares behind the first r values, summed over groups."""
    squares = torch.stack([each.double().square() for each in values]).sum(0)
    total = squares.sum().clamp_min(1e-300)
    tails = squares.flip(0).cumsum(0).flip(0) / total
    return torch.cat((tails, tails.new_zeros(1)))


def lost_share(kept: float, whole: float) -> float:
    """`1 - kept / whole`, no less than 0; 0 where there is nothing to lose."""
    return max(1.0 - kept / whole, 0.0) if whole > 0 else 0.0
