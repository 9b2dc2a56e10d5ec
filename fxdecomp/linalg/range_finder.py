"""Leading left singular vectors of a large matrix, without a full decomposition.

    G = A A^T,    Q <- orth(p(G) Q),    p the Chebyshev polynomial that is small on [0, c] and grows beyond

c is the least Ritz value of the block so far, so that p damps what lies behind the block; the best vectors
in the last block are its Ritz vectors. The block is drawn at random, from a seed of its own, a little wider
than the rank. G is formed where that is cheaper than to apply A and A^T in turn. Few rounds of a low degree
do: the error of the approximation, not the vectors, must be near the best, and a high degree at the first,
rough cut would drown all but the largest values.

Sources: Halko, Martinsson and Tropp 2011, SIAM Review 53 (random blocks, oversampling); Zhou, Saad, Tiago and
Chelikowsky 2006, J. Comput. Phys. 219 (the filter).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from fxdecomp.linalg.factoring import add_below, mirror

LARGE = 1024
"""The least size of a matrix that is worth it; a full decomposition of smaller ones takes half a second."""
MOST = 0.45
"""The largest share of the smaller size that a rank may be."""

_COLUMNS = 4096
"""Columns of a matrix that are multiplied out at one time, so that it is not copied whole."""

_OVERSAMPLING = 32
_ROUNDS, _DEGREE = 2, 3
_NARROW = 0.1
_DIGITS = {torch.float32: 1e-4, torch.float64: 1e-11}


def leading_left(matrix: Float[Tensor, "rows columns"], rank: int) -> Float[Tensor, "rows rank"] | None:
    """The leading left singular vectors (columns, orthonormal), or None where that is no task for this.

    It is none where the matrix is small, the rank is no small share of it, or the block's least singular
    value is so far below the largest that squaring would cost the digits that decide (`_DIGITS`).

    Args:
        matrix: float32 or float64, on any device.
        rank: How many.

    Cost: `rows^2 columns`, or sixteen products of the matrix with `rank` vectors where those are fewer.
    """
    rows, columns = matrix.shape
    if min(rows, columns) < LARGE or rank > MOST * min(rows, columns):
        return None
    if rows > columns:
        right = leading_left(matrix.T, rank)
        return None if right is None else torch.linalg.qr(matrix @ right)[0]
    least, most = map(float, matrix.aminmax())
    inverse = 1 / max(-least, most, torch.finfo(matrix.dtype).tiny)
    width = rank + _OVERSAMPLING
    if width > _NARROW * rows:
        square = matrix.new_zeros(rows, rows)
        for part in torch.split(matrix, _COLUMNS, dim=1):
            add_below(square, part * inverse)
        mirror(square)

        def apply(block: Tensor) -> Tensor:
            return square @ block
    else:

        def apply(block: Tensor) -> Tensor:
            return matrix @ (matrix.T @ block * inverse) * inverse

    drawn = torch.randn(
        rows, width, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu"
    )
    ritz, vectors = _ritz(apply, drawn.to(matrix))
    if not float(ritz[0]) > _DIGITS[matrix.dtype] * float(ritz[-1]):
        return None
    return vectors.flip(1)[:, :rank]


def _ritz(
    apply: Callable[[Tensor], Tensor], start: Float[Tensor, "rows width"]
) -> tuple[Float[Tensor, " width"], Float[Tensor, "rows width"]]:
    """Ritz values, ascending, and Ritz vectors after some rounds of filtering."""
    block = torch.linalg.qr(apply(start))[0]
    image = apply(block)
    for _ in range(_ROUNDS):
        block = filtered(apply, block, image, _DEGREE)
        image = apply(block)
    values, rotation = torch.linalg.eigh(block.T @ image)
    return values, block @ rotation


def filtered(
    apply: Callable[[Tensor], Tensor],
    block: Float[Tensor, "rows width"],
    image: Float[Tensor, "rows width"],
    degree: int,
) -> Float[Tensor, "rows width"]:
    """One step towards the leading eigenvectors: orthonormal columns that span `p(G) block`.

    Args:
        apply: The product with G, which has no negative eigenvalue.
        block: Orthonormal columns.
        image: `G block`.
        degree: Of p; it takes `degree - 1` products more.
    """
    cut = float(torch.linalg.eigvalsh(block.T @ image)[0])
    before, now = block, image * (2 / cut) - block if cut > 0 else image
    for _ in range(degree - 1 if cut > 0 else 0):
        before, now = now, (apply(now) * (2 / cut) - now) * 2 - before
    # Where the block ends in next to nothing, the polynomial of what leads it leaves the range of numbers.
    columns: Tensor = torch.linalg.qr(now if bool(now.isfinite().all()) else image)[0]
    return columns
