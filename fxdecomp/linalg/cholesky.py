"""The triangular factor of a covariance, singular or not."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from fxdecomp.errors import CalibrationError

RIDGE = 1e-10
"""The least that is added to the diagonal, as a share of its mean."""


def cholesky(
    matrix: Float[Tensor, "*batch n n"], shift: float = 0.0, dtype: torch.dtype | None = None
) -> Float[Tensor, "*batch n n"]:
    """The lower factor; the ridge grows until there is one, as singular matrices are normal.

    Args:
        matrix: Symmetric; it is not changed, and copied once.
        shift: What is added to the diagonal in any case, as a share of its mean.
        dtype: Of the factor; None for that of the matrix.

    Raises:
        CalibrationError: The matrix is not finite.
    """
    mean = matrix.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))
    ridge = RIDGE
    while bool(mean.isfinite().all()) and ridge < math.inf:
        copied = matrix.to(dtype or matrix.dtype, copy=True, memory_format=torch.contiguous_format)
        lower = copied.mT  # column by column, as LAPACK wants it
        lower.diagonal(dim1=-2, dim2=-1).add_((shift + ridge) * mean)
        failed = torch.empty(0, dtype=torch.int32, device=matrix.device)
        torch.linalg.cholesky_ex(lower, out=(lower, failed))
        if not bool(failed.any()):
            return lower
        ridge *= 100
    raise CalibrationError("products of weights and inputs overflow; scale the network's weights or inputs")
