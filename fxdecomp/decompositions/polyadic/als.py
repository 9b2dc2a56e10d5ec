"""Alternating least squares for the canonical polyadic decomposition, accelerated and kept well-posed.

    X[t, s, k] ~ sum_r  A[t, r] B[s, r] E[k, r],    E the Khatri-Rao product of the spatial factors

A sweep contracts the kernel twice, each time as one matrix product, and updates every factor once:

    Y = A^T X          [r, (s, k)], from which B and every spatial factor follow by element-wise work, and
    M = X (B . E)      [t, r], from which A and the error follow.

What falls is not the error alone but `||X - X'||^2 + mu sum_r ||term r||^2`. Without the second summand a
best approximation need not exist, and terms may grow without bound while they cancel each other. mu is a
small share of the squared error reached so far, so that it vanishes with the error. Sweeps start from an
extrapolated point; one that raises the objective is thrown away.

Sources: Kolda and Bader 2009, SIAM Review 51, section 3.4 (the updates); de Silva and Lim 2008, SIAM J.
Matrix Anal. 30 (why the second summand); Ang, Cohen, Gillis and Hien 2021, Numer. Linear Algebra Appl. 28
(the extrapolation). The ordering of the products is this project's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

Factors = tuple[Float[Tensor, "_ r"], ...]
"""A `[t, r]`, B `[s, r]`, then one factor a group of spatial axes."""

_MOMENTUM, _MOST, _GROWTH, _CUT = 0.7, 0.98, 1.05, 0.7
_PATIENCE = 5
_FLOOR = {torch.float32: 0.05, torch.float64: 1e-12}
"""The errors below which a type hides what a sweep gains; squared, the first is 2e4 of its roundings."""
_RIDGE = {torch.float32: 1e-6, torch.float64: 1e-12}
"""Added to a normal matrix of unit diagonal, whose rounding it must exceed: terms may be alike."""


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """Factors and what they are worth.

    Attributes:
        factors: One matrix a mode; a term's vectors have even norms.
        error: `||X - X'|| / ||X||`.
        energy: `sum_r ||term r||^2 / ||X||^2`; far above 1 where terms cancel each other.
    """

    factors: Factors
    error: float
    energy: float

    def objective(self, mu: float) -> float:
        """The root of the penalised square error, so that it is of the error's size."""
        return math.sqrt(self.error**2 + mu * self.energy)


@dataclass(frozen=True, slots=True, eq=False)
class Descent:
    """The last point of an iteration, the objective after every sweep that was kept, and mu at the end."""

    point: Point
    objectives: tuple[float, ...]
    mu: float


class Kernel:
    """A kernel, its spatial axes grouped, and the products with it that a sweep needs.

    Attributes:
        tensor: float32 or float64.
        square: Its squared norm.
        floor: The least relative error that its type is good for.
    """

    def __init__(self, tensor: Float[Tensor, "t s *k"]) -> None:
        self.tensor = tensor
        self.matrix = tensor.flatten(1)
        rows = torch.split(self.matrix, 64)
        self.floor = _FLOOR[tensor.dtype]
        self.square: float = math.fsum(float(torch.linalg.vector_norm(part.double())) ** 2 for part in rows)

    def sweep(self, factors: Factors, damping: float) -> Point:
        """Update every factor once.

        Args:
            factors: Where to start from; A matters, B does not.
            damping: mu.

        Cost: two products with the kernel.
        """
        A, B, *spatial = factors
        rank, sizes = A.shape[1], self.tensor.shape[2:]
        gram_a, *grams = (gram(factor) for factor in (A, *spatial))
        Y = (A.T @ self.matrix).reshape(rank, B.shape[0], -1)
        seen = torch.bmm(Y, _products(spatial)[:, :, None])[:, :, 0]
        B = solve(seen.T, hadamard([gram_a, *grams]), damping)
        gram_b = gram(B)
        Y = (Y * B.T[:, :, None]).sum(1).reshape(rank, *sizes)
        for index in range(len(spatial)):
            others = [*range(index), *range(index + 1, len(spatial))]
            rest = Y
            for other in reversed(others):
                rest = (rest.movedim(1 + other, -1) * _along(spatial[other], rest.ndim)).sum(-1)
            normal = hadamard([gram_a, gram_b, *(grams[other] for other in others)])
            spatial[index] = solve(rest.T, normal, damping)
            grams[index] = gram(spatial[index])
        product = self.matrix @ _products([B, *spatial]).T
        normal = hadamard([gram_b, *grams])
        A = solve(product, normal, damping)
        gram_a = gram(A)
        fitted = float((product * A).sum(dtype=torch.float64))
        whole = gram_a * normal
        square = max(self.square - 2 * fitted + float(whole.sum()), 0.0) / self.square
        norms = torch.stack([each.diagonal() for each in (gram_a, gram_b, *grams)]).sqrt()
        even = _scaled((A, B, *spatial), norms)
        return Point(even, math.sqrt(square), float(whole.trace()) / self.square)


def descend(
    kernel: Kernel,
    factors: Factors,
    damping: float,
    tolerance: float,
    sweeps: int,
    *,
    mu: float | None = None,
) -> Descent:
    """Sweep until it no longer pays, or until the kernel's type no longer shows what it pays.

    Args:
        kernel: What to approximate.
        factors: The start.
        damping: mu as a share of the squared error reached so far.
        tolerance: Stop when sweeps lower the objective by less than this share of it, on average over a few.
        sweeps: The most sweeps.
        mu: Where it starts from, and what it never exceeds; None where nothing is known of the start.
    """
    best = kernel.sweep(even_norms(factors), mu or 0.0)
    mu = damping * best.error**2 if mu is None else mu
    trace = [best.objective(mu)]
    momentum, velocity = _MOMENTUM, None
    tried = 1
    while tried < sweeps and best.error > kernel.floor:
        point = best.factors
        if velocity is not None:
            point = tuple(x + momentum * v for x, v in zip(point, velocity, strict=True))
        new = kernel.sweep(point, mu)
        tried += 1
        if new.objective(mu) < best.objective(mu):
            velocity = tuple(x - old for x, old in zip(new.factors, best.factors, strict=True))
            best, momentum = new, min(momentum * _GROWTH, _MOST)
            mu = min(mu, damping * best.error**2)
            trace.append(best.objective(mu))
            if _stalled(trace, tolerance):
                break
        elif velocity is None:
            break
        else:
            momentum, velocity = momentum * _CUT, None
    return Descent(best, tuple(trace), mu)


def _stalled(trace: list[float], tolerance: float) -> bool:
    before = trace[-1 - _PATIENCE] if len(trace) > _PATIENCE else math.inf
    return before - trace[-1] < _PATIENCE * tolerance * trace[-1]


def khatri_rao(factors: list[Tensor] | Factors) -> Float[Tensor, "rows r"]:
    """Column-wise Kronecker product, the first factor's index running slowest."""
    return _products(factors).T


def _products(factors: list[Tensor] | Factors) -> Float[Tensor, "r rows"]:
    """The Khatri-Rao product, one term a row: written that way it runs along memory."""
    return reduce(lambda left, right: (left[:, :, None] * right[:, None]).flatten(1), (f.T for f in factors))


def even_norms(factors: Factors) -> Factors:
    """Share each term's norm evenly between its vectors."""
    norms = [torch.linalg.vector_norm(factor, dim=0, dtype=torch.float64) for factor in factors]
    return _scaled(factors, torch.stack(norms))


def _scaled(factors: Factors, norms: Float[Tensor, "modes r"]) -> Factors:
    """Factors of even norms from those of the norms given; a term without norm in one is zero in all."""
    share = norms.prod(0) ** (1 / len(norms))
    weights = torch.nan_to_num(share / norms, nan=0.0, posinf=0.0).to(factors[0].dtype)
    return tuple(factor * w for factor, w in zip(factors, weights, strict=True))


def gram(factor: Float[Tensor, "n r"]) -> Float[Tensor, "r r"]:
    """`F^T F`, handed on in float64."""
    return torch.mm(factor.T, factor).double()


def hadamard(grams: list[Tensor]) -> Float[Tensor, "r r"]:
    """The element-wise product."""
    return reduce(torch.mul, grams)


def solve(
    product: Float[Tensor, "n r"], normal: Float[Tensor, "r r"], damping: float
) -> Float[Tensor, "n r"]:
    """`product (normal + damping diag(normal))^-1`; a term without norm, or of one that is rounding, is zero.

    The diagonal of `normal` holds the squared norms of the terms' other vectors: damping by it is damping by
    the squared norms of the terms. The matrix is scaled to a unit diagonal first, so that its rounding has a
    known size. NaN where the matrix is not finite.
    """
    diagonal = normal.diagonal()
    least = torch.finfo(product.dtype).eps ** 2 * diagonal.max()
    scale = torch.where(diagonal > least, diagonal.rsqrt(), 0.0)
    unit = normal * scale * scale[:, None]
    ridge = max(damping, _RIDGE[product.dtype])
    failed = True
    while failed and ridge < math.inf:
        unit.diagonal().fill_(1 + ridge)
        lower, info = torch.linalg.cholesky_ex(unit)
        failed = bool(info)
        ridge *= 100
    if failed:
        return torch.full_like(product, math.nan)
    wide = product.double() * scale
    if 2 * len(product) < len(normal):
        solution = torch.cholesky_solve(wide.T, lower).T
    else:
        solution = wide @ torch.cholesky_inverse(lower)
    return (solution * scale).to(product.dtype)


def _along(factor: Tensor, ndim: int) -> Tensor:
    """`[k, r]` as `[r, 1, ..., k]` of `ndim` axes."""
    return factor.T.reshape(factor.shape[1], *(1,) * (ndim - 2), factor.shape[0])
