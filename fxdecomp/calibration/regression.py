"""Least squares of one layer's output on another network's activations, and whether it holds elsewhere.

    minimise  E ||y - H z - b||^2 + lambda tr(C) / m ||H - H0||^2

Shrinking towards the present stage H0 rather than towards zero makes too few samples harmless. With the means
taken out, `H = H0 + (K - H0 C)(C + lambda tr(C) / m)^-1`, where `C = Cov z`, `K = Cov(y, z)`. Two stages in a
row take the leading directions of it: `U` the eigenvectors of `H C H^T`, `U^T H` before it. The strength
lambda, and whether anything is changed at all, are decided on samples that were held out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

RIDGES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
_GAIN = 1e-3
"""Share of the held-out error that a change must take away."""


@dataclass(frozen=True, slots=True, eq=False)
class JointMoments:
    """Sums over samples of inputs z `[m]` and wanted outputs y `[t]`, in float64; they can be added.

    Attributes:
        count: Number of samples.
        z: Sum of z.
        y: Sum of y.
        zz: Sum of `z z^T`.
        yz: Sum of `y z^T`.
        yy: Sum of `||y||^2`.
    """

    count: int
    z: Float[Tensor, " m"]
    y: Float[Tensor, " t"]
    zz: Float[Tensor, "m m"]
    yz: Float[Tensor, "t m"]
    yy: float

    @staticmethod
    def of(z: Float[Tensor, "n m"], y: Float[Tensor, "n t"]) -> JointMoments:
        """The sums over some samples."""
        z, y = z.double(), y.double()
        return JointMoments(len(z), z.sum(0), y.sum(0), z.T @ z, y.T @ z, float(y.square().sum()))

    def __add__(self, other: JointMoments) -> JointMoments:
        return JointMoments(
            self.count + other.count,
            self.z + other.z,
            self.y + other.y,
            self.zz + other.zz,
            self.yz + other.yz,
            self.yy + other.yy,
        )

    @property
    def covariance(self) -> Float[Tensor, "m m"]:
        """`Cov z`."""
        return self.zz / self.count - torch.outer(self.z, self.z) / self.count**2

    @property
    def cross(self) -> Float[Tensor, "t m"]:
        """`Cov(y, z)`."""
        return self.yz / self.count - torch.outer(self.y, self.z) / self.count**2

    def through(self, inner: Float[Tensor, "r m"]) -> JointMoments:
        """The sums for `G z` in the place of z."""
        return JointMoments(
            self.count, inner @ self.z, self.y, inner @ self.zz @ inner.T, self.yz @ inner.T, self.yy
        )

    def error(self, tail: Tail) -> float:
        """`E ||y - H z - b||^2`."""
        H, b = tail.whole, tail.bias
        quadratic = ((H @ self.zz) * H).sum() + 2 * b @ (H @ self.z) + self.count * b @ b
        linear = (self.yz * H).sum() + self.y @ b
        return max(self.yy - 2 * float(linear) + float(quadratic), 0.0) / self.count


@dataclass(frozen=True, slots=True, eq=False)
class Tail:
    """The end of a chain as matrices in float64: `y = outer (inner z) + bias`; inner may be absent."""

    outer: Float[Tensor, "t r"]
    bias: Float[Tensor, " t"]
    inner: Float[Tensor, "r m"] | None = None

    @property
    def whole(self) -> Float[Tensor, "t m"]:
        """Both stages as one matrix."""
        return self.outer if self.inner is None else self.outer @ self.inner


def refit(fit: JointMoments, held: JointMoments, now: Tail) -> Tail | None:
    """The tail that fits best, None where nothing does better on the held-out samples.

    Args:
        fit: Samples to fit to.
        held: Samples to judge by.
        now: The tail as it is.
    """
    limit = held.error(now) * (1 - _GAIN)
    tried = [(held.error(tail), index) for index, tail in enumerate(_candidates(fit, now))]
    error, best = min(tried)
    if not error < limit:
        return None
    return list(_candidates(fit + held, now))[best]


def _candidates(moments: JointMoments, now: Tail) -> Iterator[Tail]:
    """The bias alone, the last stage, both stages: the stages at every strength."""
    yield _with_bias(moments, now.outer, now.inner)
    last = moments if now.inner is None else moments.through(now.inner)
    for H in _regressions(last, now.outer):
        yield _with_bias(moments, H, now.inner)
    if now.inner is not None:
        C = moments.covariance
        for H in _regressions(moments, now.whole):
            U = torch.linalg.eigh(H @ C @ H.T).eigenvectors.flip(1)[:, : now.outer.shape[1]]
            yield _with_bias(moments, U, U.T @ H)


def _regressions(moments: JointMoments, start: Float[Tensor, "t m"]) -> Iterator[Float[Tensor, "t m"]]:
    C = moments.covariance
    rest = moments.cross - start @ C
    scale = C.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    values, vectors = torch.linalg.eigh(C)
    turned = rest @ vectors
    for ridge in RIDGES:
        yield start + (turned / (values.clamp_min(0) + ridge * scale)) @ vectors.T


def _with_bias(
    moments: JointMoments, outer: Float[Tensor, "t r"], inner: Float[Tensor, "r m"] | None
) -> Tail:
    whole = outer if inner is None else outer @ inner
    return Tail(outer, (moments.y - whole @ moments.z) / moments.count, inner)
