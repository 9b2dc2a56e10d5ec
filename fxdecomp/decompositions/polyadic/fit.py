"""A canonical polyadic decomposition from start to finish.

1. The kernel is compressed onto its leading singular subspaces, where a sweep costs a fraction, and the
   terms are fitted there (after Bro and Andersson 1998, Chemom. Intell. Lab. Syst. 42).
2. They are polished on the kernel itself, in float64 where the error is so small that float32 would hide it.
3. Terms that cancel each other are known by their energy, and cured by heavier damping for as long as that
   costs less error than rounding the vectors would (the aim of Phan et al. 2020, arXiv 2008.05441: terms of
   small norms at little error, which bear fine-tuning and int8).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from fxdecomp.decompositions.polyadic.als import Descent, Factors, Kernel, Point, descend
from fxdecomp.decompositions.polyadic.separable import separable_terms

DAMPING = 3e-3
"""The penalty on the terms' squared norms, as a share of the squared error."""
ENERGY = 10.0
"""Terms whose squared norms add up to more than this multiple of the kernel's are cured."""
ROUNDING = 3e-3
"""A relative change of the vectors that terms must bear: it costs its square times the energy."""

_ROOM = 1.5
_WORTH = 0.25
_KEPT = 0.35
_ROUGH = 4.0


@dataclass(frozen=True, slots=True)
class Effort:
    """How far an iteration is taken.

    Attributes:
        tolerance: Stop when a sweep lowers the error by less than this share of it.
        sweeps: The most sweeps on the compressed kernel, and again on the kernel itself.
    """

    tolerance: float
    sweeps: int


@dataclass(frozen=True, slots=True, eq=False)
class PolyadicFit:
    """The outcome.

    Attributes:
        factors: One matrix a mode, all vectors of a term of the same norm.
        error: `||X - X'|| / ||X||`.
        energy: `sum_r ||term r||^2 / ||X||^2`.
        objectives: The penalised error after every sweep on the kernel itself; it never rises.
    """

    factors: Factors
    error: float
    energy: float
    objectives: tuple[float, ...]


def fit_polyadic(
    tensor: Float[Tensor, "t s *k"],
    basis: Callable[[int], Tensor],
    rank: int,
    effort: Effort,
) -> PolyadicFit:
    """Fit a rank.

    Args:
        tensor: The kernel, its spatial axes grouped; float32 or float64.
        basis: Gives the left singular vectors of its output (0) and of its input unfolding (1).
        rank: Number of terms.
        effort: How far to go.

    Cost: two products of the kernel with `rank` vectors a sweep.
    """
    scale = float(torch.linalg.vector_norm(tensor, math.inf))
    if scale == 0:
        return PolyadicFit(tuple(tensor.new_zeros(n, rank) for n in tensor.shape), 0.0, 0.0, (0.0,))
    unit = tensor / scale
    kernel, descent = _settled(unit, _start(unit, basis, rank, effort), effort)
    point = _cured(kernel, descent.point, effort)
    share = scale ** (1 / tensor.ndim)
    factors = tuple((factor * share).to(tensor.dtype) for factor in point.factors)
    return PolyadicFit(factors, point.error, point.energy, descent.objectives)


def _start(
    tensor: Float[Tensor, "t s *k"], basis: Callable[[int], Tensor], rank: int, effort: Effort
) -> Factors:
    """Terms fitted to the compressed kernel, or the plain start where compression would not pay."""
    size = math.ceil(_ROOM * rank)
    sizes = [min(n, size) for n in tensor.shape[:2]]
    if math.prod(sizes) > _WORTH * math.prod(tensor.shape[:2]):
        return separable_terms(tensor, basis(0), rank)
    U, V = (basis(mode)[:, :size] for mode in (0, 1))
    half = (U.T @ tensor.flatten(1)).reshape(U.shape[1], tensor.shape[1], -1)
    core = torch.matmul(V.T, half).reshape(U.shape[1], V.shape[1], *tensor.shape[2:])
    if float(core.square().sum()) < _KEPT * float(tensor.square().sum()):
        return separable_terms(tensor, basis(0), rank)
    identity = torch.eye(U.shape[1], dtype=core.dtype, device=core.device)
    start = separable_terms(core, identity, rank)
    rough = replace(effort, tolerance=_ROUGH * effort.tolerance)
    found = _settled(core, start, rough)[1].point.factors
    A, B, *spatial = (factor.to(core.dtype) for factor in found)
    return (U @ A, V @ B, *spatial)


def _settled(tensor: Float[Tensor, "t s *k"], start: Factors, effort: Effort) -> tuple[Kernel, Descent]:
    """The outcome of a descent, and the kernel in the type that it ended in."""
    kernel = Kernel(tensor)
    descent = descend(kernel, start, DAMPING, effort.tolerance, effort.sweeps)
    if tensor.dtype == torch.float64 or descent.point.error > kernel.floor:
        return kernel, descent
    kernel = Kernel(tensor.double())
    wide = tuple(factor.double() for factor in descent.point.factors)
    more = descend(kernel, wide, DAMPING, effort.tolerance, effort.sweeps, mu=descent.mu)
    return kernel, replace(more, objectives=descent.objectives + more.objectives)


def _cured(kernel: Kernel, point: Point, effort: Effort) -> Point:
    """A point of less energy, where that is worth its error: what is weighed up is also what is minimised."""
    if point.energy <= ENERGY:
        return point
    weight = ROUNDING**2
    found = descend(kernel, point.factors, math.inf, effort.tolerance, effort.sweeps, mu=weight).point
    return min(point, found, key=lambda each: each.objective(weight))
