"""Spectra and bases of a weight in the metric of its inputs.

An unfolding has the inputs, with some of the kernel's axes, on one side. Let Sigma be the covariance over
that side, summed over the positions along the other axes, and `Sigma = L L^T`.

    inputs on the columns:  A L = U S X^T              the basis is U, the output's principal directions
    inputs on the rows:     L^T A = U S X^T            the basis spans A X, what the first stages must see

X comes from `A^T Sigma A` where that is the smaller problem. In the first case `U U^T A` is the best
approximation of a rank (Eckart and Young 1936, on `A L`); no inverse of L is needed, so that a singular
covariance does no harm.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from fxdecomp.calibration.moments import Moments


def whitened_svd(
    matrix: Float[Tensor, "rows columns"], shape: tuple[int, ...], moments: Moments, modes: tuple[int, ...]
) -> tuple[Float[Tensor, "rows n"], Float[Tensor, " n"]]:
    """Orthonormal basis and singular values of an unfolding, whitened on the side of its inputs.

    Args:
        matrix: The unfolding.
        shape: Of the weight, `(out, in, *kernel)`.
        moments: Of its input patches.
        modes: The rows of the unfolding.
    """
    dtype, count = matrix.dtype, min(matrix.shape)
    if 1 in modes:
        matrix = matrix.double()
        sigma = _covariance(moments, shape[1:], modes)
        if count < len(matrix):
            squares, X = torch.linalg.eigh(matrix.T @ sigma @ matrix)
            spanned = X * squares.clamp_min(0).sqrt()
        else:
            image = _symmetric_root(sigma) @ matrix
            squares, U = torch.linalg.eigh(image @ image.T)
            spanned = image.T @ U
        basis = _orthonormal(matrix @ spanned.flip(1))
    else:
        others = tuple(mode for mode in range(len(shape)) if mode not in modes)
        if count < len(matrix):
            image = matrix.double() @ _symmetric_root(_covariance(moments, shape[1:], others))
            squares, X = torch.linalg.eigh(image.T @ image)
            basis = _orthonormal(image @ X.flip(1))
            values = squares.flip(0).clamp_min(0).sqrt()
            return basis.to(dtype), values.to(dtype)
        if len(others) == len(shape) - 1:
            product = moments.output_covariance(matrix)
        else:
            wide = matrix.double()
            product = wide @ _covariance(moments, shape[1:], others) @ wide.T
        squares, U = torch.linalg.eigh(product)
        basis = U.flip(1)[:, :count]
    values = squares.flip(0)[:count].clamp_min(0).sqrt()
    return basis.to(dtype), values.to(dtype)


def _covariance(moments: Moments, sizes: tuple[int, ...], modes: tuple[int, ...]) -> Float[Tensor, "m m"]:
    """Over the modes given, in their order, summed over the positions along the kernel's other axes."""
    shaped = moments.dense().double().reshape(*sizes, *sizes)
    kept = list(range(1, len(sizes) + 1))
    for mode in [mode for mode in kept if mode not in modes]:
        place = kept.index(mode)
        shaped = shaped.diagonal(dim1=place, dim2=len(kept) + place).sum(-1)
        kept.remove(mode)
    order = [kept.index(mode) for mode in modes]
    shaped = shaped.permute(*order, *(len(kept) + place for place in order))
    return shaped.flatten(0, len(kept) - 1).flatten(1)


def _symmetric_root(matrix: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return root


def _orthonormal(basis: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
    """Orthonormal columns whose leading ones span the leading ones of `basis`."""
    norms = torch.linalg.vector_norm(basis, dim=0)
    unit = basis / norms.clamp_min(norms.max().clamp_min(1e-30) * 1e-12)
    orthonormal: Tensor = torch.linalg.qr(unit)[0]
    return orthonormal
