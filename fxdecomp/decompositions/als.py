"""Alternating least squares for the canonical polyadic decomposition of a kernel.

    X[t, s, k] ~ sum_r  A[t, r] B[s, r] E[k, r],    E the Khatri-Rao product of one factor a group of spatial
    axes

An iteration contracts the kernel twice, each time as one matrix product:

    Y = A^T X          [r, (s, k)], from which B and every spatial factor follow by element-wise work, and
    M = X (B . E)      [t, r], from which A follows.

The start is deterministic: X = U S V^T, every right vector split into separable terms by further SVDs, and
the terms of the largest norm taken. Source: Kolda and Bader 2009, SIAM Review 51, section 3.4; the ordering
of the products is this project's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class PolyadicFit:
    """The outcome of the iteration.

    Attributes:
        factors: A `[t, r]`, B `[s, r]`, then one factor a group of spatial axes, all columns of even norm.
        errors: `||X - X'|| / ||X||` after the start and after every iteration.
    """

    factors: tuple[Float[Tensor, "_ r"], ...]
    errors: tuple[float, ...]


def fit_polyadic(
    tensor: Float[Tensor, "t s *k"],
    basis: Float[Tensor, "t n"],
    rank: int,
    *,
    tolerance: float,
    iterations: int,
) -> PolyadicFit:
    """Fit a rank.

    Args:
        tensor: The kernel, its spatial axes grouped.
        basis: Left singular vectors of its output unfolding.
        rank: Number of terms.
        tolerance: The iteration stops when the relative error falls by less than this share of itself.
        iterations: The most iterations.
    """
    scale = tensor.abs().max()
    if scale == 0:
        return PolyadicFit(tuple(tensor.new_zeros(n, rank) for n in tensor.shape), (0.0,))
    state = _Sweep(tensor / scale)
    factors = start(state.tensor, basis, rank)
    errors = [state.error(factors)]
    for _ in range(iterations):
        factors, error = state.step(factors)
        errors.append(error)
        if errors[-2] - error <= max(tolerance * error, 1e-7):
            break
    return PolyadicFit(even_norms(factors, scale), tuple(errors))


class _Sweep:
    """One kernel and the products that an iteration needs."""

    def __init__(self, tensor: Float[Tensor, "t s *k"]) -> None:
        self.tensor = tensor
        self.matrix = tensor.flatten(1)
        self.square = float(tensor.double().square().sum())

    def step(self, factors: list[Tensor]) -> tuple[list[Tensor], float]:
        """Update every factor once; the last update gives the error at no cost."""
        A, B, *spatial = factors
        sizes = self.tensor.shape[2:]
        Y = (A.T @ self.matrix).reshape(A.shape[1], B.shape[0], -1)
        E = khatri_rao(spatial)
        B = _solve(torch.einsum("rsk,kr->sr", Y, E), [A, *spatial])
        seen = torch.einsum("rsk,sr->rk", Y, B).reshape(-1, *sizes)
        for index in range(len(spatial)):
            rest = seen
            for other in reversed(range(len(spatial))):
                if other != index:
                    rest = (rest.movedim(1 + other, -1) * _along(spatial[other], rest.ndim)).sum(-1)
            others = [factor for other, factor in enumerate(spatial) if other != index]
            spatial[index] = _solve(rest.T, [A, B, *others])
        product = self.matrix @ khatri_rao([B, *spatial])
        A = _solve(product, [B, *spatial])
        factors = [A, B, *spatial]
        return factors, self._error(product, factors)

    def error(self, factors: list[Tensor]) -> float:
        """The relative error of factors, without the approximation being formed."""
        return self._error(self.matrix @ khatri_rao(factors[1:]), factors)

    def _error(self, product: Tensor, factors: list[Tensor]) -> float:
        fitted = float((product.double() * factors[0].double()).sum())
        norm = float(_grams(factors).sum())
        return math.sqrt(max(self.square - 2 * fitted + norm, 0.0) / self.square)


def start(tensor: Float[Tensor, "t s *k"], basis: Float[Tensor, "t n"], rank: int) -> list[Tensor]:
    """The `rank` largest separable terms of the singular value decomposition of the output unfolding."""
    rows = basis.T @ tensor.flatten(1)
    vectors: list[Tensor] = [basis.T]
    parts = rows.reshape(len(rows), *tensor.shape[1:])
    while parts.ndim > 2:
        matrices = parts.flatten(2)
        U, S, V = torch.linalg.svd(matrices, full_matrices=False)
        count = S.shape[1]
        order = S.flatten().argsort(descending=True)[: max(rank, 1)]
        vectors = [vector[order // count] for vector in vectors]
        vectors.append(U.movedim(2, 1).flatten(0, 1)[order])
        parts = (V * S[..., None]).flatten(0, 1)[order].reshape(-1, *parts.shape[2:])
    vectors.append(parts)
    order = parts.norm(dim=1).argsort(descending=True)[:rank]
    missing = rank - len(order)
    return [torch.nn.functional.pad(vector[order].T, (0, missing)) for vector in vectors]


def khatri_rao(factors: list[Tensor]) -> Float[Tensor, "rows r"]:
    """Column-wise Kronecker product, the first factor's index running slowest."""
    return reduce(lambda left, right: (left[:, None] * right[None]).flatten(0, 1), factors)


def even_norms(factors: list[Tensor], scale: Tensor) -> tuple[Tensor, ...]:
    """Share each term's norm, times `scale`, evenly between its vectors."""
    norms = torch.stack([torch.linalg.vector_norm(factor, dim=0) for factor in factors]).double()
    share = (norms.prod(0) * scale.double()) ** (1 / len(factors))
    weights = torch.where(norms > 0, share / norms.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    return tuple((factor * weight).to(factor.dtype) for factor, weight in zip(factors, weights, strict=True))


def _along(factor: Tensor, ndim: int) -> Tensor:
    """`[k, r]` as `[r, 1, ..., k]` of `ndim` axes."""
    return factor.T.reshape(factor.shape[1], *(1,) * (ndim - 2), factor.shape[0])


def _grams(factors: list[Tensor]) -> Float[Tensor, "r r"]:
    return reduce(torch.mul, [factor.double().T @ factor.double() for factor in factors])


def _solve(product: Float[Tensor, "n r"], others: list[Tensor]) -> Float[Tensor, "n r"]:
    """The least-squares update: `product` times the inverse of the others' Gram matrices, in float64."""
    normal = _grams(others)
    ridge = torch.finfo(torch.float64).eps * len(normal) * normal.diagonal().mean()
    lower, failed = torch.linalg.cholesky_ex(normal + ridge * torch.eye(len(normal)).to(normal))
    if int(failed):
        solution: Tensor = product.double() @ torch.linalg.pinv(normal, hermitian=True)
    else:
        solution = torch.cholesky_solve(product.double().T, lower).T
    return solution.to(product.dtype)
