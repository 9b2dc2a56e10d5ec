"""The error of many ranks of a method at once, from spectra and projections, without a factorisation each.

With `s` the singular values of the unfolding that a method truncates, `||W||^2 = sum s^2`, and all errors
relative to it:

    svd, channel_svd, spatial_svd    e^2(r) = sum_{i > r} s_i^2                     exact (Eckart and Young)
    tucker2                          e^2(p, q) = 1 - sum_{i <= p, j <= q} ||G_ij||^2   G the core of the full
                                     higher-order SVD: the error of its truncation, which alternation lowers
    tensor_train                     e^2 <= the sum of the tails of its unfoldings   (Oseledets 2011, th. 2.2)
    cp, cp3                          a short run of the iteration at a few ranks

With calibration errors are those of the output. `svd` and `channel_svd` have them from the whitened spectrum;
for all others the last stages are fitted to the layer's inputs behind the stages that the method starts from
(`fitted_tails`), and the result is divided by what alternation over all stages brought where it was measured.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from fxdecomp.allocation.fitted_tails import Rank, chain_error, metric_of, nested_errors, tucker2_errors
from fxdecomp.decompositions import Decomposition, Problem, decompose
from fxdecomp.decompositions.cp import CanonicalPolyadic
from fxdecomp.decompositions.spatial_svd import SpatialSVD
from fxdecomp.decompositions.tensor_train import TensorTrain
from fxdecomp.decompositions.tucker2 import Tucker2
from fxdecomp.layers import LayerSpec

FINE: Mapping[int, int] = {1: 40, 2: 16}
"""How many ranks of a method of one and of two ranks are considered, at most, along each rank."""

COARSE: Mapping[int, int] = {1: 10, 2: 7}
"""The same where every candidate has to be timed."""

_POLYADIC_SHARES = (0.25, 0.5, 1.0, 1.5)
_POLYADIC_ITERATIONS = 15
_ALTERNATION = {"tucker2": 1.05, "spatial_svd": 1.2, "tensor_train": 1.4, "cp": 1.5, "cp3": 1.5}
"""What the squared output error falls by when all stages are fitted: two convolutions of the recogniser at a
tenth and a quarter of the multiply-accumulates, see docs/budgets.md. Without it `auto` undervalues CP."""

_TRAIN_ERRORS = tuple(0.9**i for i in range(2, 42, 2))


@dataclass(frozen=True, slots=True)
class Estimate:
    """The squared relative error that a rank of a method is expected to have at a site."""

    method: str
    rank: Rank
    error: float


def estimate(
    method: Decomposition,
    spec: LayerSpec,
    problems: Sequence[Problem],
    multiple_of: int,
    points: Mapping[int, int] = FINE,
) -> list[Estimate]:
    """Errors of a method at a grid of ranks.

    Args:
        method: The decomposition; it suits the geometry.
        spec: The whole layer, with its groups.
        problems: One per group.
        multiple_of: Ranks are multiples of it, where the layer is large enough.
        points: `FINE` or `COARSE`.

    Cost: the spectra, which all methods share; for `cp` and `cp3` a few short iterations.
    """
    errors: dict[Rank, float]
    if isinstance(method, SpatialSVD) and _is_calibrated(problems):
        ranks = rank_grid(method.rank_limits(spec.per_group)[0], multiple_of, points[1])
        errors = nested_errors(method, problems, ranks) if ranks else {}
    elif isinstance(method, Tucker2):
        errors = _tucker2(method, spec, problems, multiple_of, points[2])
    elif isinstance(method, TensorTrain):
        errors = _tensor_train(method, spec, problems, multiple_of)
    elif isinstance(method, CanonicalPolyadic):
        errors = _polyadic(method, spec, problems, multiple_of)
    else:
        errors = _truncated(method, spec, problems, multiple_of, points[1])
    gain = _ALTERNATION.get(method.name, 1.0) if _is_calibrated(problems) else 1.0
    return [Estimate(method.name, rank, max(error, 0.0) / gain) for rank, error in errors.items()]


def rank_grid(limit: int, multiple_of: int, points: int) -> list[int]:
    """Ascending ranks below a limit, evenly spread; finer than `multiple_of` where few multiples fit."""
    step = multiple_of
    while step > 1 and limit // step < 4:
        step = max(1, step // 2)
    ranks = list(range(step, limit, step))
    if len(ranks) <= points:
        return ranks
    picked = {round(i * (len(ranks) - 1) / (points - 1)) for i in range(points)}
    return [ranks[i] for i in sorted(picked)]


def _truncated(
    method: Decomposition, spec: LayerSpec, problems: Sequence[Problem], multiple_of: int, points: int
) -> dict[Rank, float]:
    (limit,) = method.rank_limits(spec.per_group)
    tails = _relative_tails([method.spectra(p)[0].singular_values for p in problems])
    grid = rank_grid(limit, multiple_of, points)
    return {(rank,): float(tails[min(rank, len(tails) - 1)]) for rank in grid}


def _tucker2(
    method: Tucker2, spec: LayerSpec, problems: Sequence[Problem], multiple_of: int, points: int
) -> dict[Rank, float]:
    limits = method.rank_limits(spec.per_group)
    outs, ins = ([*rank_grid(limit, multiple_of, points), limit] for limit in limits)
    if _is_calibrated(problems):
        errors = tucker2_errors(method, problems, outs, ins)
    else:
        kept, total = _core_energies(problems)
        errors = {(p, q): 1.0 - float(kept[p - 1, q - 1]) / total for p, q in itertools.product(outs, ins)}
    del errors[limits]
    return errors


def _core_energies(problems: Sequence[Problem]) -> tuple[Float[Tensor, "t s"], float]:
    """Summed squares of the leading blocks of the rotated kernels, and of the whole, over all groups."""
    kept: Tensor | None = None
    for problem in problems:
        U, V = problem.left_svd(0)[0], problem.left_svd(1)[0]
        core = torch.einsum("tsk,tp,sq->pqk", problem.weight.flatten(2), U, V)
        squares = core.double().square().sum(2).cumsum(0).cumsum(1)
        kept = squares if kept is None else kept + squares
    assert kept is not None
    return kept, max(float(kept[-1, -1]), 1e-300)


def _tensor_train(
    method: TensorTrain, spec: LayerSpec, problems: Sequence[Problem], multiple_of: int
) -> dict[Rank, float]:
    """Ranks whose truncations cost about the same error each."""
    by_mode = zip(*(method.spectra(problem) for problem in problems), strict=True)
    tails = [_relative_tails([s.singular_values for s in spectra]) for spectra in by_mode]
    limits = method.rank_limits(spec.per_group)
    metrics = [metric_of(problem) for problem in problems] if _is_calibrated(problems) else []
    errors: dict[Rank, float] = {}
    for threshold in _TRAIN_ERRORS:
        rank = tuple(
            min(_aligned(int((tail > threshold).sum()), limit, multiple_of), limit)
            for tail, limit in zip(tails, limits, strict=True)
        )
        if min(rank) < 1 or rank in errors:
            continue
        if metrics:
            chains = (method.factors(problem, rank) for problem in problems)
            stages = method.stage_specs(spec.per_group, rank)
            errors[rank] = chain_error(stages, zip(metrics, chains, strict=True))
        else:
            bound = sum(float(tail[min(r, len(tail) - 1)]) for tail, r in zip(tails, rank, strict=True))
            errors[rank] = min(bound, 1.0)
    return errors


def _polyadic(
    method: CanonicalPolyadic, spec: LayerSpec, problems: Sequence[Problem], multiple_of: int
) -> dict[Rank, float]:
    quick = replace(method, iterations=_POLYADIC_ITERATIONS)
    (channels,) = method.rank_channels(spec.per_group)
    (limit,) = method.rank_limits(spec.per_group)
    bare = [Problem(problem.weight, problem.spec) for problem in problems]
    metrics = [metric_of(problem) for problem in problems] if _is_calibrated(problems) else []
    errors: dict[Rank, float] = {}
    for share in _POLYADIC_SHARES:
        rank = (min(_aligned(round(share * channels), limit, multiple_of), limit),)
        if rank in errors or rank[0] < 1:
            continue
        if metrics:
            chains = (quick.factors(each, rank) for each in bare)
            stages = quick.stage_specs(spec.per_group, rank)
            errors[rank] = chain_error(stages, zip(metrics, chains, strict=True))
        else:
            composed = [decompose(quick, (each,), each.spec, rank, dtype=each.weight.dtype) for each in bare]
            rest = [each.weight - chain.composed_weight() for each, chain in zip(bare, composed, strict=True)]
            errors[rank] = _energy(rest) / max(_energy(each.weight for each in bare), 1e-300)
    return errors


def _energy(kernels: Iterable[Tensor]) -> float:
    return sum(float(kernel.double().square().sum()) for kernel in kernels)


def _is_calibrated(problems: Sequence[Problem]) -> bool:
    return problems[0].moments is not None


def _relative_tails(values: Iterable[Float[Tensor, " n"]]) -> Float[Tensor, " m"]:
    """`tail[r]`: the share of the summed squares behind the first r values, summed over groups."""
    squares = torch.stack([each.double().square() for each in values]).sum(0)
    total = squares.sum().clamp_min(1e-300)
    tails = squares.flip(0).cumsum(0).flip(0) / total
    return torch.cat((tails, tails.new_zeros(1)))


def _aligned(rank: int, limit: int, multiple_of: int) -> int:
    step = multiple_of
    while step > 1 and limit // step < 4:
        step = max(1, step // 2)
    return max(step, math.ceil(rank / step) * step)
