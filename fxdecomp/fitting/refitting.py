"""A layer's chain fitted to another network's activations, and whether the fit holds elsewhere.

The chain sees input patches z of the network that is already compressed; the original layer gave y there. The
dense layer that would do best, shrunk towards the original one W,

    H = W + (K - W C)(C + lambda tr(C) / d)^-1,    C = Cov z,  K = Cov(y, z)

is what the chain's stages are then fitted to (`refine`), in the metric of C plus a little of the identity, so
that the chain stays close to H where the samples show nothing. The bias keeps the mean. With fewer samples
than dimensions only the last stage is fitted, shrunk towards what it is. The strength lambda, and whether
anything is changed at all, are decided on samples that were held out.

Source: Zhang et al. 2015, arXiv 1505.06798, section 3.3 (asymmetric reconstruction); the shrinkage towards
the original, and fitting all stages, are our own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from fxdecomp.calibration.moments import Moments
from fxdecomp.chains import Chain
from fxdecomp.fitting.alternation import refine
from fxdecomp.fitting.metric import Metric
from fxdecomp.fitting.tails import basis_of
from fxdecomp.linalg.cholesky import cholesky

RIDGES = (1.0, 1e-1, 1e-2, 1e-3)
_FLOOR = 1e-2
"""Weight of the directions that the samples do not show, as a share of their mean variance."""
GAIN = 1e-3
"""Share of the held-out error that a change must take away."""


@dataclass(frozen=True, slots=True, eq=False)
class JointMoments:
    """The moments of input patches z `[d]` with the wanted outputs y `[t]` behind them.

    Attributes:
        inputs: Of z.
        outputs: `Cov y`, or of fewer rows than outputs a root of it; where the moments of z are a root, the
            rows of y that belong to its rows.
        across: `Cov(y, z)`; None beside a root.
        mean: `E y`.
    """

    inputs: Moments
    outputs: Float[Tensor, "n t"]
    across: Float[Tensor, "t d"] | None
    mean: Float[Tensor, " t"]

    @staticmethod
    def of(moments: Moments, d: int) -> JointMoments:
        """From the moments of rows `(z, y)`, which are not copied."""
        known, mean_in, mean_out = moments.covariance, moments.mean[:d], moments.mean[d:]
        if moments.is_root:
            return JointMoments._of_rows(known[:, :d], known[:, d:], mean_in, mean_out, moments.count)
        inputs = Moments(known[:d, :d], mean_in, moments.count)
        return JointMoments(inputs, known[d:, d:], known[d:, :d], mean_out)

    @staticmethod
    def _of_rows(
        z: Float[Tensor, "n d"],
        y: Float[Tensor, "n t"],
        mean_in: Float[Tensor, " d"],
        mean_out: Float[Tensor, " t"],
        count: int,
    ) -> JointMoments:
        """From a root of the moments of both."""
        inputs = Moments.of_root(z, mean_in, count)
        if inputs.is_root:
            return JointMoments(inputs, y, None, mean_out)
        outputs = Moments.of_root(y, mean_out, count)
        return JointMoments(inputs, outputs.covariance, (y.T @ z).double(), mean_out)

    def joined(self, other: JointMoments) -> JointMoments:
        """The moments of both sets of rows."""
        count = self.inputs.count + other.inputs.count
        left, right = self.inputs.count / count, other.inputs.count / count
        gap = (self.mean - other.mean) * (left * right) ** 0.5
        gap_in = (self.inputs.mean - other.inputs.mean) * (left * right) ** 0.5
        if self.across is None and other.across is None:
            mean = left * self.mean + right * other.mean
            rows = [self.outputs * left**0.5, other.outputs * right**0.5, gap[None]]
            mean_in = left * self.inputs.mean + right * other.inputs.mean
            roots = [self.inputs.covariance * left**0.5, other.inputs.covariance * right**0.5, gap_in[None]]
            return JointMoments._of_rows(torch.cat(roots), torch.cat(rows), mean_in, mean, count)
        inputs, outputs = self.inputs + other.inputs, self.of_outputs + other.of_outputs
        across = (left * self.of_both + right * other.of_both).addr(gap, gap_in)
        return JointMoments(inputs, outputs.covariance, across, outputs.mean)

    @property
    def _keeps_rows(self) -> bool:
        """Whether `outputs` holds rows."""
        return self.across is None or len(self.outputs) < self.outputs.shape[1]

    @property
    def of_outputs(self) -> Moments:
        """The moments of y."""
        made = Moments.of_root if self._keeps_rows else Moments
        return made(self.outputs, self.mean, self.inputs.count)

    @property
    def of_both(self) -> Float[Tensor, "t d"]:
        """`Cov(y, z)`."""
        rows = self.inputs.covariance
        return (self.outputs.T @ rows).double() if self.across is None else self.across

    @property
    def variance(self) -> float:
        """`E ||y - mean y||^2`."""
        if self._keeps_rows:
            return float(self.outputs.square().sum(dtype=torch.float64))
        return float(self.outputs.diagonal().sum())

    def metric(self, target: Float[Tensor, "out in *kernel"]) -> Metric:
        """The error of a chain that stands for `target`, on z and a little on everything else."""
        return Metric.of(target, self.inputs, _FLOOR)

    def through(self, basis: Float[Tensor, "m d"]) -> JointMoments:
        """The moments with `B z` in the place of z."""
        wide, known = basis.to(self.inputs.covariance.dtype), self.inputs
        mean, half = basis.double() @ known.mean, known.covariance @ wide.T
        if self.across is None:
            return JointMoments._of_rows(half, self.outputs, mean, self.mean, known.count)
        inputs = Moments(wide @ half, mean, known.count)
        return JointMoments(inputs, self.outputs, self.across @ wide.T, self.mean)

    def weighed(self, root: Callable[[Tensor], Tensor]) -> JointMoments:
        """The moments with `M y` in the place of y; `root` multiplies columns by M, which is symmetric."""
        outputs = root(self.outputs.T).T
        outputs = outputs if self._keeps_rows else root(outputs)
        across = None if self.across is None else root(self.across)
        return JointMoments(self.inputs, outputs, across, root(self.mean))

    def error(self, H: Float[Tensor, "t d"], bias: Float[Tensor, " t"]) -> float:
        """`E ||y - H z - b||^2`."""
        offset = float((bias - self.bias_for(H)).square().sum())
        known = self.inputs.covariance
        if self.across is None:
            missed = self.outputs - known @ H.T.to(known.dtype)
            return offset + float(missed.square().sum(dtype=torch.float64))
        explained = 2 * float((H * self.across).sum()) - float(((H @ known) * H).sum())
        return offset + max(self.variance - explained, 0.0)

    def error_of(self, chain: Chain) -> float:
        """The same of a chain of one group with a bias."""
        assert chain.bias is not None  # made so by the caller; narrows the type
        return self.error(matrix_of(chain), chain.bias)

    def bias_for(self, H: Float[Tensor, "t d"]) -> Float[Tensor, " t"]:
        """The bias that keeps the mean of y."""
        return self.mean - H @ self.inputs.mean

    def regressed(
        self, start: Float[Tensor, "t d"], ridges: Sequence[float]
    ) -> Iterator[Float[Tensor, "t d"]]:
        """The layer that fits best, shrunk towards `start` by each of some strengths."""
        C = self.inputs.dense().double()
        missing = (self.of_both - start @ C).T
        for ridge in ridges:
            yield start + torch.cholesky_solve(missing, cholesky(C, ridge)).T


def refit(
    fit: JointMoments, held: JointMoments, chain: Chain, layer: Float[Tensor, "out in *kernel"]
) -> Chain:
    """The chain that fits best; the one that was given, where nothing does better on held-out samples.

    Args:
        fit: Samples to fit to.
        held: Samples to judge by.
        chain: The chain of one group as it is, its bias in float64.
        layer: `[out, in, *kernel]`, the weight of the layer that it stands for.
    """
    if not fit.inputs.is_root:
        return _fitted(fit, held, chain, layer)
    last = len(chain.weights) - 1
    basis = basis_of(chain.form.stages, chain.weights, last).flatten(1)
    tail = Chain(chain.form.last(1), chain.weights[last:], chain.bias)
    found = _fitted(fit.through(basis), held.through(basis), tail, chain.weights[last])
    if found is tail:
        return chain
    return replace(chain, weights=(*chain.weights[:last], *found.weights), bias=found.bias)


def _fitted(fit: JointMoments, held: JointMoments, chain: Chain, layer: Tensor) -> Chain:
    start = layer.flatten(1).double()

    def judged(H: Tensor) -> float:
        return held.error(H, fit.bias_for(H))

    def refined(known: JointMoments, target: Tensor, given: Chain) -> Chain:
        return refine(known.metric(target.reshape(layer.shape).to(layer.dtype)), (given,))

    ridge, target = _best_ridge(fit, start, judged)
    new = refined(fit, target, chain)
    kept, changed = judged(matrix_of(chain)), judged(matrix_of(new))
    if not min(kept, changed) < held.error_of(chain) * (1 - GAIN):
        return chain
    both = fit.joined(held)
    best = refined(both, next(both.regressed(start, (ridge,))), new) if changed < kept else chain
    return replace(best, bias=both.bias_for(matrix_of(best)))


def _best_ridge(
    fit: JointMoments, start: Tensor, judged: Callable[[Tensor], float]
) -> tuple[float, Float[Tensor, "t d"]]:
    """The strength whose layer does best on held-out samples; weaker ones are tried as long as they gain."""
    best, least = (RIDGES[0], start), math.inf
    for ridge, H in zip(RIDGES, fit.regressed(start, RIDGES), strict=True):
        found = judged(H)
        if not found < least:
            break
        best, least = (ridge, H), found
    return best


def error_over(parts: Sequence[JointMoments], chain: Chain) -> float:
    """The error of a chain over sets of rows together."""
    counts = [part.inputs.count for part in parts]
    errors = (part.error_of(chain) for part in parts)
    return math.fsum(count * error for count, error in zip(counts, errors, strict=True)) / sum(counts)


def variance_over(parts: Sequence[JointMoments]) -> float:
    """The variance of the wanted output over sets of rows together."""
    counts = torch.tensor([part.inputs.count for part in parts], dtype=torch.float64)
    means = torch.stack([part.mean for part in parts]).double()
    shares = (counts / counts.sum()).to(means.device)
    apart = (means - shares @ means).square().sum(1)
    within = torch.tensor([part.variance for part in parts], dtype=torch.float64, device=means.device)
    return float(shares @ (within + apart))


def matrix_of(chain: Chain) -> Float[Tensor, "out d"]:
    """The stages of one group as one matrix, in float64."""
    return chain.composed_weight().flatten(1).double()
