"""`Moments`: what calibration knows about the inputs of one layer, and `MomentsSum`, which adds them up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fxdecomp.linalg.factoring import add_below, gram, mirror, symmetric_product

WIDE = 4096
"""Dimensions above which a covariance is kept in float32 once added up, and never copied whole."""

_ROWS = 512
"""Rows of a matrix that are taken to float64 at one time."""

_LEAST_INPUTS = 4
"""The fewest inputs that say how uncertain their mean is; of two, centred, both are the same."""


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
        ridge: What is to be added to the diagonal: the variance that is assumed of directions which the
            inputs do not show (see `shrinkage`).
    """

    covariance: Float[Tensor, "n d"]
    mean: Float[Tensor, " d"]
    count: int
    ridge: float = 0.0

    @staticmethod
    def of_root(root: Float[Tensor, "n d"], mean: Float[Tensor, " d"], count: int) -> Moments:
        """The moments whose covariance is `root^T root`, which is multiplied out unless that is larger."""
        few = root.shape[0] < root.shape[1]
        return Moments(root if few else symmetric_product(root.T).double(), mean, count)

    @staticmethod
    def apart(variances: Float[Tensor, " d"]) -> Moments:
        """Of numbers that are assumed to vary apart, about zero."""
        return Moments(torch.diag(variances), torch.zeros_like(variances), 1)

    def of(self, numbers: Int[Tensor, " m"]) -> Moments:
        """Of some of the numbers of a patch, or of all in another order."""
        return Moments(self.dense()[numbers][:, numbers], self.mean[numbers], self.count)

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets of patches together."""
        count = self.count + other.count
        left, right = self.count / count, other.count / count
        gap = (self.mean - other.mean) * (left * right) ** 0.5
        mean = left * self.mean + right * other.mean
        if self.is_root and other.is_root:
            roots = (self.covariance * left**0.5, other.covariance * right**0.5, gap[None])
            ridge = left * self.ridge + right * other.ridge
            return replace(Moments.of_root(torch.cat(roots), mean, count), ridge=ridge)
        (most, share), (least, rest) = sorted(
            ((self, left), (other, right)), key=lambda each: each[0].is_root
        )
        whole = most.dense() * share
        if least.is_root:
            add_below(whole, least.covariance.T * rest**0.5)
            mirror(whole)
            whole.diagonal().add_(least.ridge * rest)
        else:
            whole.add_(least.dense(), alpha=rest)
        gap = gap.to(whole.dtype)
        return Moments(whole.addr_(gap, gap), mean, count)

    @property
    def trace(self) -> float:
        """`tr Sigma`, the variance of all numbers of a patch together."""
        seen = self.covariance.square().sum() if self.is_root else self.covariance.diagonal().sum()
        return float(seen) + self.ridge * self.covariance.shape[1]

    def compact(self) -> Moments:
        """The moments as they are kept: what is to be added is, and many dimensions are in float32."""
        if self.is_root:
            return self
        known = self.dense()
        return Moments(known if len(known) <= WIDE else known.float(), self.mean, self.count)

    def scaled(self, factor: float) -> Moments:
        """The moments with `factor` times the covariance."""
        scale = factor**0.5 if self.is_root else factor
        return replace(self, covariance=self.covariance * scale, ridge=self.ridge * factor)

    def mixed(self, other: Moments, share: float) -> Moments:
        """`1 - share` of these moments and `share` of others, about one mean each."""
        mean = (1 - share) * self.mean + share * other.mean
        one, two = self.scaled(1 - share), other.scaled(share)
        ridge = one.ridge + two.ridge
        if one.is_root and two.is_root:
            root = torch.cat([one.covariance, two.covariance])
            return replace(Moments.of_root(root, mean, self.count), ridge=ridge)
        seen = replace(one, ridge=0.0).dense() + replace(two, ridge=0.0).dense()
        return Moments(seen, mean, self.count, ridge)

    def product(self, other: Moments) -> float:
        """`tr Sigma Sigma'`, the inner product of both covariances."""
        first, second = (self, other) if self.is_root else (other, self)
        if first.is_root and second is first and not first.ridge:
            return _square_of_gram(first.covariance)
        if first.is_root:
            return second.output_variance(first.covariance) + first.ridge * second.trace
        both = float((first.covariance * second.covariance).sum(dtype=torch.float64))
        unseen = first.ridge * first.covariance.shape[1]
        return both + first.ridge * second.trace + second.ridge * (first.trace - unseen)

    @property
    def is_root(self) -> bool:
        """Whether `covariance` holds a root."""
        return self.covariance.shape[0] < self.covariance.shape[1]

    def dense(self) -> Float[Tensor, "d d"]:
        """The covariance itself. Cost: `n d^2` where only a root is kept."""
        if not self.ridge and not self.is_root:
            return self.covariance
        known = symmetric_product(self.covariance.T) if self.is_root else self.covariance.clone()
        known.diagonal().add_(self.ridge)
        return known

    def output_covariance(self, matrix: Float[Tensor, "rows d"]) -> Float[Tensor, "rows rows"]:
        """`A Sigma A^T` in float64; of A no whole copy is made."""
        parts = torch.split(matrix, _ROWS)
        projected = torch.cat([self._projected(part.double()) for part in parts])
        if self.is_root:
            seen = projected @ projected.T
        else:
            seen = torch.cat([projected @ part.double().T for part in parts], dim=1)
        return seen + self.ridge * gram(matrix) if self.ridge else seen

    def _projected(self, wide: Float[Tensor, "rows d"]) -> Float[Tensor, "rows n"]:
        """`A Sigma^T`, or `A root^T`; of a large covariance no second copy is made."""
        parts = torch.split(self.covariance, WIDE)
        return torch.cat([wide @ part.double().T for part in parts], dim=1)

    def output_variance(self, matrix: Float[Tensor, "rows d"]) -> float:
        """`tr A Sigma A^T` in float64; of A no whole copy is made."""
        return math.fsum(self._variance(part.double()) for part in torch.split(matrix, _ROWS))

    def _variance(self, wide: Float[Tensor, "rows d"]) -> float:
        projected = self._projected(wide)
        seen = float((projected.square() if self.is_root else projected * wide).sum())
        return seen + self.ridge * float(wide.square().sum()) if self.ridge else seen


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
        self._clusters: list[tuple[int, float]] = []

    def add(self, rows: Float[Tensor, "n d"], owners: Int[Tensor, " n"] | None = None) -> None:
        """Add patches.

        Args:
            rows: The patches.
            owners: The input that each of them is a part of, ascending; needed for `shrunk`.

        Cost: `n d^2`, in the type of the rows; with owners `min(m, d) m d` more for each input of m patches.
        """
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
        if owners is not None:
            sizes = torch.unique_consecutive(owners, return_counts=True)[1].tolist()
            self._clusters += self._seen_from_the_mean(torch.split(centred, sizes))
        d = rows.shape[1]
        if sum(map(len, self._rows)) >= d:  # a product for many, however small the batches
            self._fold()

    def _seen_from_the_mean(self, inputs: Sequence[Tensor]) -> list[tuple[int, float]]:
        """The rows of each input, and the squared norm of their second moment about the mean so far.

        That mean leans towards the inputs that it is made of, the k-th of which seems nearer than it is by
        `1 - 1 / k`, and its fourth powers by the square of that.
        """
        assert self._sum is not None
        offset = (self._sum / self._count).to(inputs[0].dtype)
        k = len(self._clusters) + len(inputs)
        factor = (k / (k - 1)) ** 2 if k > 1 else 0.0
        return [(len(part), factor * _square_of_gram(part - offset)) for part in inputs]

    def _fold(self) -> None:
        d = self._rows[0].shape[1]
        if self._square is None:
            self._square = self._rows[0].new_zeros(d, d, dtype=torch.float64)
        add_below(self._square, torch.cat(self._rows).T)
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
            rows = torch.cat(self._rows)
            return Moments((rows - offset.to(rows.dtype)) / self._count**0.5, mean, self._count)
        if self._rows:
            self._fold()
        mirror(self._square)
        covariance = (self._square / self._count).addr_(offset, offset, alpha=-1)
        return Moments(covariance, mean, self._count)

    def shrunk(self, target: Moments | None = None) -> Moments:
        """The moments, shrunk by what so few inputs can bear towards a target T of the same trace.

            Sigma' = (1 - rho) Sigma + rho T,    rho = beta^2 / ||Sigma - T||^2

        beta^2 estimates `E ||Sigma - its truth||^2` from how far the second moments of the inputs, one by
        one, lie from their mean: patches of one input are not independent. Of a single input nothing is
        known of that, nor is much of two or three: there rho is 1, and the metric that of the weight alone.
        The mean, by which a chain's bias is put right, is shrunk towards that of the target by the same rho.

        Args:
            target: Moments of other inputs, scaled here; None for a multiple of the identity about 0.

        Source: Ledoit and Wolf 2004, J. Multivariate Anal. 88, with inputs in the place of observations.
        """
        known = self.moments()
        trace, square = known.trace, known.product(known)
        if not trace > 0:  # a single row shows no variance; its size gives the identity a scale
            own = replace(known, mean=0 * known.mean, ridge=float(known.mean.square().mean()))
            return target or own
        if target is None or not target.trace > 0:
            d = known.covariance.shape[1]
            rho = self._share(square, square - trace**2 / d)
            return replace(known.scaled(1 - rho), mean=known.mean * (1 - rho), ridge=rho * trace / d)
        target = target.scaled(trace / target.trace)
        rho = self._share(square, square - 2 * known.product(target) + target.product(target))
        return known.mixed(target, rho)

    def _share(self, square: float, spread: float) -> float:
        """rho, with `||Sigma||^2` and `||Sigma - T||^2` given."""
        return min(1.0, self._uncertainty(square) / spread) if spread > 0 else 0.0

    def _uncertainty(self, square: float) -> float:
        """beta^2, with `||Sigma||^2` given; infinite for fewer than `_LEAST_INPUTS`."""
        lean = (
            (1 - 1 / len(self._clusters)) ** 2 if self._clusters else 1.0
        )  # of the mean of all towards each
        shares = [(size / self._count, lean * norm / size**2) for size, norm in self._clusters]
        effective = 1 / sum(share**2 for share, _ in shares)
        if effective < _LEAST_INPUTS - 1e-9:
            return math.inf
        total = sum(share**2 * norm for share, norm in shares) - square / effective
        return max(total, 0.0) * effective / (effective - 1)


def _square_of_gram(rows: Float[Tensor, "n d"]) -> float:
    """`||R^T R||^2`, from whichever Gram matrix is smaller, in float64."""
    small = rows @ rows.T if rows.shape[0] < rows.shape[1] else rows.T @ rows
    return float(small.double().square().sum())
