"""A deterministic start for the polyadic iteration: the largest separable terms of an SVD.

    X[t, (s, k)] = sum_n U[t, n] P[n, s, k],    P[n, s, k] = sum_j B[n, j, s] E[n, j, k],    E again by axes

Every split is orthogonal, so the terms' norms add up to the kernel's, and all of them together are exact.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def separable_terms(
    tensor: Float[Tensor, "t s *k"], basis: Float[Tensor, "t n"], rank: int
) -> tuple[Float[Tensor, "_ r"], ...]:
    """The `rank` largest terms, one matrix a mode; columns of zeros where there are fewer.

    Args:
        tensor: The kernel.
        basis: Left singular vectors of its output unfolding.
        rank: Number of terms.
    """
    vectors = [basis.T]
    parts = (basis.T @ tensor.flatten(1)).reshape(basis.shape[1], *tensor.shape[1:])
    while parts.ndim > 2:
        left, right = _split(parts.flatten(2))
        terms = left.shape[1]
        left, right = left.flatten(0, 1), right.flatten(0, 1)
        order = torch.linalg.vector_norm(right, dim=1).argsort(descending=True, stable=True)[:rank]
        vectors = [vector[order // terms] for vector in vectors] + [left[order]]
        parts = right[order].reshape(-1, *parts.shape[2:])
    vectors.append(parts)
    return tuple(
        torch.nn.functional.pad(vector[:rank].T, (0, max(0, rank - len(vector)))) for vector in vectors
    )


def _split(
    matrices: Float[Tensor, "n a b"],
) -> tuple[Float[Tensor, "n j a"], Float[Tensor, "n j b"]]:
    """Each matrix as a sum of orthogonal terms: unit vectors on the left, the norms on the right."""
    a, b = matrices.shape[1:]
    if a <= b:
        wide = matrices.double()
        _, basis = torch.linalg.eigh(wide @ wide.mT)
        left = basis.mT.to(matrices.dtype)
        return left, left @ matrices
    right, left = _split(matrices.mT)
    norms = torch.linalg.vector_norm(left, dim=2, keepdim=True)
    return left / norms.clamp_min(torch.finfo(norms.dtype).tiny), right * norms
