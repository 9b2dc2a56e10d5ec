"""`Moments`: what calibration knows about the inputs of one layer, and `MomentsSum`, which adds them up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Mean and centred second moment of a layer's input patches.

    The patch of a convolution holds what one output position sees, in the order of `weight.flatten(1)`:
    channels first, then the kernel's axes.

    Attributes:
        covariance: `E[(p - mean)(p - mean)^T]`, `[d, d]` with `d = in_channels * prod(kernel)`; or, of fewer
            patches than dimensions, a root `[n, d]` of it: `root^T root` is the covariance.
        mean: `E[p]`, `[d]`.
        count: Number of patches that were averaged.
    """

    covariance: Float[Tensor, "n d"]
    mean: Float[Tensor, " d"]
    count: int

    @staticmethod
    def of_root(root: Float[Tensor, "n d"], mean: Float[Tensor, " d"], count: int) -> Moments:
        """The moments whose covariance is `root^T root`, which is multiplied out unless that is larger."""
        return Moments(root if root.shape[0] < root.shape[1] else root.T @ root, mean, count)

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets of patches together."""
        count = self.count + other.count
        left, right = self.count / count, other.count / count
        gap = (self.mean - other.mean) * (left * right) ** 0.5
        mean = left * self.mean + right * other.mean
        if self.is_root and other.is_root:
            roots = (self.covariance * left**0.5, other.covariance * right**0.5, gap[None])
            return Moments.of_root(torch.cat(roots), mean, count)
        return Moments(left * self.dense() + right * other.dense() + torch.outer(gap, gap), mean, count)

    @property
    def is_root(self) -> bool:
        """Whether `covariance` holds a root."""
        return self.covariance.shape[0] < self.covariance.shape[1]

    def dense(self) -> Float[Tensor, "d d"]:
        """The covariance itself. Cost: `n d^2` where only a root is kept."""
        return self.covariance.T @ self.covariance if self.is_root else self.covariance

    def output_covariance(self, matrix: Float[Tensor, "rows d"]) -> Float[Tensor, "rows rows"]:
        """`A Sigma A^T` in float64."""
        wide = matrix.double()
        known = self.covariance.double()
        if self.is_root:
            projected = wide @ known.T
            return projected @ projected.T
        return wide @ known @ wide.T

    def output_variance(self, matrix: Float[Tensor, "rows d"]) -> float:
        """`tr A Sigma A^T` in float64."""
        wide = matrix.double()
        projected = wide @ self.covariance.double().T
        return float((projected.square() if self.is_root else projected * wide).sum())


class MomentsSum:
    """Adds up patches; rows are kept as they are until there are as many as dimensions.

    Sums are taken about the first rows' mean and kept in float64, so that neither a large mean nor many
    batches cost digits.
    """

    def __init__(self) -> None:
        self._shift: Tensor | None = None
        self._rows: list[Tensor] = []
        self._sum: Tensor | None = None
        self._square: Tensor | None = None
        self._count = 0

    def add(self, rows: Float[Tensor, "n d"]) -> None:
        """Add patches. Cost: `n d^2`, in the type of the rows."""
        if not len(rows):
            return
        if self._shift is None:
            self._shift = rows.mean(0)
            self._sum = torch.zeros_like(self._shift, dtype=torch.float64)
        assert self._sum is not None
        centred = rows - self._shift
        self._count += len(rows)
        self._sum += centred.sum(0, dtype=torch.float64)
        self._rows.append(centred)
        if self._count >= rows.shape[1]:
            self._fold()

    def _fold(self) -> None:
        d = self._rows[0].shape[1]
        if self._square is None:
            self._square = self._rows[0].new_zeros(d, d, dtype=torch.float64)
        for rows in self._rows:
            self._square += rows.T @ rows
        self._rows.clear()

    def moments(self) -> Moments:
        """The moments of all rows so far.

        Raises:
            ValueError: No row has been added.
        """
        if self._shift is None or self._sum is None:
            raise ValueError("no patches were added, so that they have no moments")
        offset = self._sum / self._count
        mean = self._shift.double() + offset
        if self._square is None:
            centred = torch.cat(self._rows).double() - offset
            return Moments(centred / self._count**0.5, mean, self._count)
        covariance = self._square / self._count
        return Moments(covariance.sub_(torch.outer(offset, offset)), mean, self._count)
