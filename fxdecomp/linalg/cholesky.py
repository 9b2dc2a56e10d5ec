"""The triangular factor of a covariance, singular or not."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from fxdecomp.errors import CalibrationError

RIDGE = 1e-10
"""The least that is added to the diagonal, as a share of its mean."""


def cholesky(matrix: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """The lower factor in float64; the ridge grows until there is one, as singular matrices are normal.

    Raises:
        CalibrationError: The matrix is not finite.
    """
    mean = matrix.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))
    ridge = RIDGE
    while bool(mean.isfinite().all()) and ridge < math.inf:
        ridged = matrix.clone()
        ridged.diagonal(dim1=-2, dim2=-1).add_(ridge * mean)
        lower, failed = torch.linalg.cholesky_ex(ridged)
        if not bool(failed.any()):
            found: Tensor = lower
            return found
        ridge *= 100
    raise CalibrationError("products of weights and inputs overflow; scale the network's weights or inputs")
