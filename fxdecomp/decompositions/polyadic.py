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
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fxdecomp.decompositions.als import Descent, Factors, Kernel, Point, descend
from fxdecomp.decompositions.separable import separable_terms

DAMPING = 3e-3
"""The penalty on the terms' squared norms, as a share of the squared error."""
ENERGY = 10.0
"""Terms whose squared norms add up to more than this multiple of the kernel's are cured."""
ROUNDING = 3e-3
"""A relative change of the vectors that terms must bear: it costs its square times the energy."""

_ROOM = 1.5
_WORTH = 0.5
_DOUBLE_BELOW = 0.05
_CURE_SWEEPS = 20


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
    bases: tuple[Float[Tensor, "t n"], Float[Tensor, "s m"]],
    rank: int,
    effort: Effort,
) -> PolyadicFit:
    """Fit a rank.

    Args:
        tensor: The kernel, its spatial axes grouped; float32 or float64.
        bases: Left singular vectors of its output and of its input unfolding.
        rank: Number of terms.
        effort: How far to go.

    Cost: two products of the kernel with `rank` vectors a sweep.
    """
    scale = float(torch.linalg.vector_norm(tensor, math.inf))
    if scale == 0:
        return PolyadicFit(tuple(tensor.new_zeros(n, rank) for n in tensor.shape), 0.0, 0.0, (0.0,))
    kernel = Kernel(tensor / scale)
    descent = descend(
        kernel, _start(kernel.tensor, bases, rank, effort), DAMPING, effort.tolerance, effort.sweeps
    )
    if descent.point.error < _DOUBLE_BELOW and tensor.dtype == torch.float32:
        kernel = Kernel(tensor.double() / scale)
        more = descend(kernel, _double(descent.point.factors), DAMPING, effort.tolerance, effort.sweeps)
        descent = Descent(more.point, descent.objectives + more.objectives)
    point = _cured(kernel, descent.point, effort)
    share = scale ** (1 / tensor.ndim)
    factors = tuple((factor * share).to(tensor.dtype) for factor in point.factors)
    return PolyadicFit(factors, point.error, point.energy, descent.objectives)


def _start(
    tensor: Float[Tensor, "t s *k"],
    bases: tuple[Float[Tensor, "t n"], Float[Tensor, "s m"]],
    rank: int,
    effort: Effort,
) -> Factors:
    """Terms fitted to the compressed kernel, or the plain start where compression would save little."""
    sizes = [min(basis.shape[1], math.ceil(_ROOM * rank)) for basis in bases]
    if math.prod(sizes) > _WORTH * math.prod(tensor.shape[:2]):
        return separable_terms(tensor, bases[0], rank)
    U, V = (basis[:, :size] for basis, size in zip(bases, sizes, strict=True))
    half = (U.T @ tensor.flatten(1)).reshape(sizes[0], tensor.shape[1], -1)
    core = torch.matmul(V.T, half).reshape(*sizes, *tensor.shape[2:])
    identity = torch.eye(sizes[0], dtype=core.dtype, device=core.device)
    start = separable_terms(core, identity, rank)
    A, B, *spatial = descend(Kernel(core), start, DAMPING, effort.tolerance, effort.sweeps).point.factors
    return (U @ A, V @ B, *spatial)


def _cured(kernel: Kernel, point: Point, effort: Effort) -> Point:
    """A point of less energy, where that is worth its error."""
    damping = DAMPING
    while point.energy > ENERGY:
        damping *= 10
        found = descend(kernel, point.factors, damping, effort.tolerance, _CURE_SWEEPS).point
        if found.objective(ROUNDING**2) >= point.objective(ROUNDING**2):
            break
        point = found
    return point


def _double(factors: Factors) -> Factors:
    return tuple(factor.double() for factor in factors)
