"""The metric of a layer's error: `tr (W - W') Sigma (W - W')^T`, the mean squared error of its output."""

from __future__ import annotations

from dataclasses import dataclass, field

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
        scale: The mean diagonal of Sigma.
        total: `tr W Sigma W^T` over `scale`.
    """

    weight: Float[Tensor, "out in *kernel"]
    covariance: Float[Tensor, "d d"]
    scale: float
    total: float
    _lower: list[Tensor] = field(default_factory=list, repr=False)

    @staticmethod
    def of(
        weight: Float[Tensor, "out in *kernel"],
        moments: Moments,
        floor: float = _FLOOR,
        power: float | None = None,
    ) -> Metric:
        """The metric of a layer's moments.

        Args:
            weight: The layer's.
            moments: Of its input patches.
            floor: Weight of the directions that the samples do not show, as a share of their mean variance.
            power: `tr W Sigma W^T`, None to find it.
        """
        size = moments.covariance.shape[1]
        scale = max(moments.trace / size, torch.finfo(torch.float64).tiny)
        known = moments.dense().to(weight.device)
        covariance = torch.div(known, scale, out=torch.empty_like(known, dtype=weight.dtype))
        covariance.diagonal().add_(floor)
        whole = moments.output_variance(weight.flatten(1)) if power is None else power
        squares = float(torch.linalg.vector_norm(weight, dtype=torch.float64)) ** 2
        return Metric(weight, covariance, scale, whole / scale + floor * squares)

    @property
    def lower(self) -> Float[Tensor, "d d"]:
        """L with `L L^T` the covariance, in the type of the weight; made when it is first asked for."""
        if not self._lower:
            self._lower.append(cholesky(self.covariance, dtype=torch.float64).to(self.weight.dtype))
        return self._lower[0]

    def error(self, composed: Tensor) -> float:
        """`tr (W - W') Sigma (W - W')^T` over `tr W Sigma W^T`.

        A sum of squares, `||(W - W') L||^2`, so that products in float32 keep their digits.
        """
        missed = (self.weight - composed).flatten(1) @ self.lower
        return float(missed.square().sum(dtype=torch.float64)) / self.total if self.total > 0 else 0.0


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
