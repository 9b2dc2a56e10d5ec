"""The metric of a layer's error: `tr (W - W') Sigma (W - W')^T`, the mean squared error of its output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fxdecomp.calibration.moments import Moments
from fxdecomp.linalg.cholesky import cholesky

_FLOOR = 1e-5
"""Weight of the directions that the samples do not show, as a share of their mean variance: without any, the
stages run off into them. Above the rounding of float32."""


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """A layer's weight and the metric of its error, ready for many products.

    Attributes:
        weight: `[out, in, *kernel]`.
        covariance: Sigma over `scale` with a little on the diagonal, `[d, d]`, in the type of the weight.
        lower: L with `L L^T` that covariance, in the same type.
        scale: The mean diagonal of Sigma.
        total: `tr W Sigma W^T` over `scale`.
    """

    weight: Float[Tensor, "out in *kernel"]
    covariance: Float[Tensor, "d d"]
    lower: Float[Tensor, "d d"]
    scale: float
    total: float

    @staticmethod
    def of(weight: Float[Tensor, "out in *kernel"], moments: Moments) -> Metric:
        """The metric of a layer's moments."""
        size = moments.covariance.shape[1]
        scale = max(moments.trace / size, torch.finfo(torch.float64).tiny)
        covariance = moments.dense().to(weight.device, torch.float64) / scale
        covariance.diagonal().add_(_FLOOR)
        lower = cholesky(covariance).to(weight.dtype)
        return Metric(weight, covariance.to(weight.dtype), lower, scale, _squares(weight, lower))

    def error(self, composed: Tensor) -> float:
        """`tr (W - W') Sigma (W - W')^T` over `tr W Sigma W^T`."""
        return _squares(self.weight - composed, self.lower) / self.total if self.total > 0 else 0.0


def _squares(kernel: Tensor, lower: Tensor) -> float:
    """`tr K Sigma K^T = ||K L||^2`: a sum of squares, so that float32 products keep their digits."""
    return float((kernel.flatten(1) @ lower).square().sum(dtype=torch.float64))


def marginal_covariance(
    covariance: Float[Tensor, "d d"], sizes: tuple[int, ...], kept: tuple[int, ...]
) -> Float[Tensor, "m m"]:
    """The covariance over the channels and some kernel axes, summed over the positions along the others.

    Args:
        covariance: Over channels and all kernel axes.
        sizes: Channels, then the kernel.
        kept: Kernel of the axes that stay, 1 for an axis that is summed over.
    """
    shaped = covariance.reshape(*sizes, *sizes)
    for axis in reversed(range(len(kept))):
        if kept[axis] == 1 and sizes[1 + axis] > 1:
            half = shaped.ndim // 2
            shaped = shaped.diagonal(dim1=1 + axis, dim2=half + 1 + axis).sum(-1)
    half = shaped.ndim // 2
    return shaped.flatten(0, half - 1).flatten(1)
