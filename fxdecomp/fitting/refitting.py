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
    """The moments of input patches z `[d]` with the wanted outputs y `[t]` behind them; they can be added.

    Attributes:
        moments: Of the rows `(z, y)`.
        inputs: d.
    """

    moments: Moments
    inputs: int

    def __add__(self, other: JointMoments) -> JointMoments:
        return JointMoments(self.moments + other.moments, self.inputs)

    @property
    def of_inputs(self) -> Float[Tensor, "d d"]:
        """`Cov z`."""
        known, d = self.moments, self.inputs
        part = known.covariance[:, :d]
        return part.T @ part if known.is_root else part[:d]

    def metric(self, target: Float[Tensor, "out in *kernel"]) -> Metric:
        """The error of a chain that stands for `target`, on z and a little on everything else."""
        covariance = self.of_inputs.clone()
        covariance.diagonal().add_(_FLOOR * covariance.diagonal().mean())
        return Metric.of(target, Moments(covariance, self.moments.mean[: self.inputs], self.moments.count))

    @property
    def across(self) -> Float[Tensor, "t d"]:
        """`Cov(y, z)`."""
        known, d = self.moments, self.inputs
        part = known.covariance[:, :d]
        return known.covariance[:, d:].T @ part if known.is_root else part[d:]

    @property
    def variance(self) -> float:
        """`E ||y - mean y||^2`."""
        outputs = self.moments.covariance[:, self.inputs :]
        if self.moments.is_root:
            return float(outputs.square().sum())
        return float(outputs[self.inputs :].diagonal().sum())

    def through(self, basis: Float[Tensor, "m d"]) -> JointMoments:
        """The moments with `B z` in the place of z."""
        known, d = self.moments, self.inputs
        wide = basis.double()
        half = torch.cat((known.covariance[:, :d] @ wide.T, known.covariance[:, d:]), dim=1)
        mean = torch.cat((wide @ known.mean[:d], known.mean[d:]))
        if known.is_root:
            return JointMoments(Moments.of_root(half, mean, known.count), len(wide))
        return JointMoments(Moments(torch.cat((wide @ half[:d], half[d:])), mean, known.count), len(wide))

    def weighed(self, root: Callable[[Tensor], Tensor]) -> JointMoments:
        """The moments with `M y` in the place of y; `root` multiplies columns by M, which is symmetric."""
        known, d = self.moments, self.inputs
        seen = known.covariance.double().clone()
        seen[:, d:] = root(seen[:, d:].T).T
        if not known.is_root:
            seen[d:] = root(seen[d:])
        mean = torch.cat((known.mean[:d], root(known.mean[d:])))
        return JointMoments(Moments(seen, mean, known.count), d)

    def error(self, H: Float[Tensor, "t d"], bias: Float[Tensor, " t"]) -> float:
        """`E ||y - H z - b||^2`."""
        offset = float((bias - self.bias_for(H)).square().sum())
        if self.moments.is_root:
            root = self.moments.covariance
            return offset + float((root[:, self.inputs :] - root[:, : self.inputs] @ H.T).square().sum())
        explained = 2 * float((H * self.across).sum()) - float(((H @ self.of_inputs) * H).sum())
        return offset + max(self.variance - explained, 0.0)

    def error_of(self, chain: Chain) -> float:
        """The same of a chain of one group with a bias."""
        assert chain.bias is not None  # made so by the caller; narrows the type
        return self.error(matrix_of(chain), chain.bias)

    def bias_for(self, H: Float[Tensor, "t d"]) -> Float[Tensor, " t"]:
        """The bias that keeps the mean of y."""
        return self.moments.mean[self.inputs :] - H @ self.moments.mean[: self.inputs]

    def regressed(
        self, start: Float[Tensor, "t d"], ridges: Sequence[float]
    ) -> Iterator[Float[Tensor, "t d"]]:
        """The layer that fits best, shrunk towards `start` by each of some strengths."""
        C = self.of_inputs
        missing = (self.across - start @ C).T
        for ridge in ridges:
            shifted = C.clone()
            shifted.diagonal().add_(ridge * C.diagonal().mean())
            yield start + torch.cholesky_solve(missing, cholesky(shifted)).T


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
    if fit.moments.count >= fit.inputs:
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
    both = fit + held
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


def matrix_of(chain: Chain) -> Float[Tensor, "out d"]:
    """The stages of one group as one matrix, in float64."""
    return chain.composed_weight().flatten(1).double()
