"""`Moments`: what calibration knows about the inputs of one layer."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Mean and centred second moment of a layer's input patches.

    The patch of a convolution holds what one output position sees, in the order of `weight.flatten(1)`:
    channels first, then the kernel's axes.

    Attributes:
        covariance: `E[(p - mean)(p - mean)^T]`, `[d, d]` with `d = in_channels * prod(kernel)`.
        mean: `E[p]`, `[d]`.
        count: Number of patches that were averaged.
    """

    covariance: Float[Tensor, "d d"]
    mean: Float[Tensor, " d"]
    count: int
