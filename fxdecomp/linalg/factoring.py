"""Truncated singular value decomposition of a matrix, the way that suits its size and type.

    A = U S V^T,    A A^T = U S^2 U^T

The left vectors of a wide matrix are the eigenvectors of its small Gram matrix. Squaring halves the digits,
so the Gram matrix of a float32 matrix is formed in float64, where no digit of the original is lost; a float64
matrix takes this road only where its singular values are close enough together (`GRAM_CONDITION`), and the
true SVD otherwise. A tall matrix is first reduced to its triangular factor.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

GRAM_CONDITION = 1e3
"""Ratio of the extreme singular values up to which a float64 Gram matrix keeps ten digits of each."""

_BLOCKED = 512
_MOST_BLOCKS = 8


def left_svd(matrix: Float[Tensor, "rows columns"]) -> tuple[Float[Tensor, "rows n"], Float[Tensor, " n"]]:
    """Left singular vectors (columns) and singular values, descending, `n = min(rows, columns)`.

    Args:
        matrix: float32 or float64, on any device.

    Returns:
        Orthonormal columns and values in the type of `matrix`.

    Cost: `rows^2 columns` for the Gram matrix and an eigenproblem of size `min(rows, columns)`.
    """
    rows, columns = matrix.shape
    if rows > columns:
        orthonormal, triangle = torch.linalg.qr(matrix)
        basis, values = left_svd(triangle)
        return orthonormal @ basis, values
    scale = matrix.abs().max().clamp_min(torch.finfo(matrix.dtype).tiny)
    unit = matrix / scale
    squares, basis = torch.linalg.eigh(gram(unit))
    values = squares.clamp_min(0).sqrt().flip(0)
    if _squared_too_far(values, matrix.dtype):
        basis, values, _ = torch.linalg.svd(matrix, full_matrices=False)
        return basis, values
    return basis.flip(1).to(matrix.dtype), values.to(matrix.dtype) * scale


def singular_values(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, " n"]:
    """The singular values alone, descending: a quarter of the cost of the vectors of a large matrix."""
    rows, columns = matrix.shape
    wide = matrix.T if rows > columns else matrix
    scale = wide.abs().max().clamp_min(torch.finfo(matrix.dtype).tiny)
    values: Tensor = torch.linalg.eigvalsh(gram(wide / scale)).clamp_min(0).sqrt().flip(0)
    if _squared_too_far(values, matrix.dtype):
        values = torch.linalg.svdvals(matrix / scale)
    return values.to(matrix.dtype) * scale


def _squared_too_far(values: Float[Tensor, " n"], dtype: torch.dtype) -> bool:
    return dtype == torch.float64 and bool(values[-1] * GRAM_CONDITION < values[0])


def gram(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows rows"]:
    """`A A^T` in float64, accumulated over slices of columns so that no float64 copy of A is made."""
    total = matrix.new_zeros(matrix.shape[0], matrix.shape[0], dtype=torch.float64)
    for part in torch.split(matrix, max(1024, matrix.shape[0]), dim=1):
        total += symmetric_product(part.double())
    return total


def symmetric_product(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows rows"]:
    """`A A^T`, block by block below the diagonal and mirrored: 9/16 of the work of a large plain product."""
    rows = matrix.shape[0]
    if rows < _BLOCKED:
        return torch.mm(matrix, matrix.T)
    total = matrix.new_empty(rows, rows)
    for low, high in _blocks(rows):
        total[low:high, :high] = matrix[low:high] @ matrix[:high].T
    mirror(total)
    return total


def add_below(total: Float[Tensor, "rows rows"], matrix: Float[Tensor, "rows columns"]) -> None:
    """Add `A A^T` to a matrix that may be of a wider type: below the diagonal, for `mirror` to finish."""
    for low, high in _blocks(len(total)):
        total[low:high, :high] += matrix[low:high] @ matrix[:high].T


def mirror(total: Float[Tensor, "rows rows"]) -> None:
    """Make a matrix symmetric that is known below the diagonal."""
    for low, high in _blocks(len(total)):
        total[:low, low:high] = total[low:high, :low].T


def _blocks(rows: int) -> Iterator[tuple[int, int]]:
    """Where blocks of rows begin and end; what is left of the end of one is below the diagonal, or in it."""
    count = 1 if rows < _BLOCKED else min(_MOST_BLOCKS, max(4, rows // _BLOCKED))
    return pairwise(rows * index // count for index in range(count + 1))


def balanced(
    basis: Float[Tensor, "rows rank"], matrix: Float[Tensor, "rows columns"]
) -> tuple[Float[Tensor, "rows rank"], Float[Tensor, "rank columns"]]:
    """Split `U (U^T A)` so that each component's row and column have the same norm.

    Args:
        basis: Orthonormal columns U.
        matrix: A.

    Returns:
        Two factors whose product is `U U^T A`.
    """
    return evened(basis, basis.T @ matrix, floor=torch.finfo(matrix.dtype).eps)


def evened(
    outer: Float[Tensor, "rows rank"], inner: Float[Tensor, "rank columns"], *, floor: float
) -> tuple[Float[Tensor, "rows rank"], Float[Tensor, "rank columns"]]:
    """Two factors of the same product whose paired columns and rows have the same norm.

    Args:
        outer: Columns of norm 1.
        inner: The rows that go with them.
        floor: Rows below this share of the largest norm are scaled as one of that norm.
    """
    norms = torch.linalg.vector_norm(inner, dim=1, dtype=torch.float64)
    least = norms.max() * floor
    norms = torch.where(norms > least, norms, torch.where(least > 0, least, torch.ones_like(norms)))
    scale = norms.sqrt().to(inner.dtype)
    return outer * scale, inner / scale[:, None]
