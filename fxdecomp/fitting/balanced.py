"""Fewer numbers between two linear maps, of which only what the one makes of the other's matters.

Of `s = a^T b`, with `P = E[a a^T]` and `Q = E[b b^T]` known and a and b of different places, the least
squared error at r numbers is that of the singular value decomposition

    P^1/2 Q^1/2 = U S V^T,    a' = S_r^-1/2 V_r^T Q^1/2 a,    b' = S_r^-1/2 U_r^T P^1/2 b

after which a' and b' have the same second moments, S_r. Nothing is inverted but singular values that stay.

Source: balanced truncation, Moore 1981, IEEE Trans. Automatic Control 26, with moments for Gramians.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_NOTHING = 1e-13
"""Share of the largest eigenvalue, or singular value, below which there is none."""


@dataclass(frozen=True, slots=True, eq=False)
class Balanced:
    """The decomposition, for all numbers r.

    Attributes:
        left: `S^-1/2 V^T Q^1/2`, a row for each number that may be kept, `[d, d]`.
        right: `S^-1/2 U^T P^1/2`, likewise; `left^T right` is a projection.
        singular: `[d]`, descending.
    """

    left: Float[Tensor, "d d"]
    right: Float[Tensor, "d d"]
    singular: Float[Tensor, " d"]

    def lost(self, kept: int) -> float:
        """Squares of the products that are lost."""
        return float(self.singular[kept:].square().sum())

    @property
    def power(self) -> float:
        """Squares of all products."""
        return float(self.singular.square().sum())


def balanced(first: Float[Tensor, "d d"], second: Float[Tensor, "d d"]) -> Balanced:
    """Balance two numbers of dimensions against each other.

    Args:
        first: `E[a a^T]`, float64.
        second: `E[b b^T]`.

    Cost: `d^3`.
    """
    P, Q = _root(first), _root(second)
    U, S, Vh = torch.linalg.svd(P @ Q)
    there = _NOTHING * S[0] < S
    scale = torch.where(there, S, torch.ones_like(S)).rsqrt() * there
    return Balanced(scale[:, None] * (Vh @ Q), scale[:, None] * (U.T @ P), S)


def _root(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    values, vectors = torch.linalg.eigh(matrix)
    values = torch.where(values > _NOTHING * values[-1], values, torch.zeros_like(values))
    root: Tensor = vectors * values.sqrt() @ vectors.T
    return root
