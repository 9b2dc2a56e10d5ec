"""Fits the stages of a chain to the data: least squares in the metric of the layer's input patches.

    minimise  tr (W - W') Sigma (W - W')^T,    W' = the composed kernel, linear in every stage

which is the output's mean squared error, the mean being put right by the bias. With the other stages held:

- The tail in closed form. Let B be the composition of the stages before it, `C = B Sigma B^T`,
  `K = W Sigma B^T`. A single last stage is `K C^-1`; a dense stage with a pointwise one behind it is the
  reduced-rank regression: `U` the leading eigenvectors of `K C^-1 K^T`, the stage before it `U^T K C^-1`.
- Every stage before the tail by conjugate gradients on its normal equations, preconditioned by their
  Kronecker approximation (output side times input side), from what the stage is. No step raises the error.

Source: Izenman 1975, J. Multivariate Anal. 5 (reduced-rank regression); Zhang et al. 2015, arXiv 1505.06798,
section 3.2 (decompositions in the metric of the responses). The alternation over all stages is our own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from fxdecomp.calibration.moments import Moments
from fxdecomp.errors import CalibrationError
from fxdecomp.layers import StageSpec

SWEEPS = 8
STEPS = 3
TOLERANCE = 1e-3
RIDGE = 1e-10
_EXACT = 1e-12
_FLOOR = 1e-5
"""Weight of the directions that the samples do not show, as a share of their mean variance: without any, the
stages run off into them. Above the rounding of float32."""
_MOST_DEPTHWISE = 4096


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

    @staticmethod
    def of(weight: Float[Tensor, "out in *kernel"], moments: Moments) -> Metric:
        """The metric of a layer's moments."""
        dense = moments.dense().to(weight.device)
        scale = dense.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
        covariance = dense / scale
        covariance.diagonal().add_(_FLOOR)
        total = _squares(weight, covariance)
        return Metric(weight, covariance.to(weight.dtype), float(scale), total)

    def error(self, composed: Tensor) -> float:
        """`tr (W - W') Sigma (W - W')^T` over `tr W Sigma W^T`."""
        lost = _squares(self.weight - composed, self.covariance)
        return max(lost, 0.0) / self.total if self.total > 0 else 0.0


def _squares(kernel: Tensor, covariance: Tensor) -> float:
    """`tr K Sigma K^T`, summed in float64: large parts may cancel each other."""
    flat = kernel.flatten(1).double()
    return float(((flat @ covariance.double()) * flat).sum())


def refine(
    metric: Metric, stages: tuple[StageSpec, ...], starts: tuple[tuple[Tensor, ...], ...]
) -> tuple[Tensor, ...]:
    """Lower the output error of a chain, stage by stage, from the most promising start.

    Args:
        metric: The layer and the metric.
        stages: The chain's geometry, one group.
        starts: Weights to start from.

    Returns:
        Weights whose output error is never above that of any start.
    """
    tail = tail_length(stages)
    known = [*starts, *(_with_tail(metric, stages, start, tail) for start in starts)]
    errors = [metric.error(compose(weights, stages)) for weights in known]
    error = min(errors)
    best = known[errors.index(error)]
    for _ in range(SWEEPS):
        if error < _EXACT:
            break
        current = best
        for index in range(len(stages) - tail):
            current = _stepped(metric, stages, current, index)
        current = _with_tail(metric, stages, current, tail)
        found = metric.error(compose(current, stages))
        if not found < error:
            break
        gain, best, error = error - found, current, found
        if gain < TOLERANCE * error:
            break
    return best


def compose(weights: tuple[Tensor, ...], stages: tuple[StageSpec, ...]) -> Tensor:
    """The kernel that a chain of one group composes to; differentiable in every weight."""
    return reduce(_behind, zip(weights[1:], stages[1:], strict=True), weights[0])


def _behind(kernel: Tensor, stage: tuple[Tensor, StageSpec]) -> Tensor:
    weight, spec = stage
    if spec.spec.is_depthwise:
        return weight * kernel
    return torch.einsum("om...,mi...->oi...", weight, kernel)


def tail_length(stages: tuple[StageSpec, ...]) -> int:
    """2 where a pointwise stage follows a dense one, else 1."""
    last = stages[-1].spec
    joint = math.prod(last.kernel) == 1 and last.groups == 1 and len(stages) > 1
    return 2 if joint and stages[-2].spec.groups == 1 and not stages[-2].name.startswith("depthwise") else 1


def basis_of(weights: tuple[Tensor, ...], stages: tuple[StageSpec, ...], index: int) -> Tensor:
    """What stage `index` looks at, as a kernel: `[in * taps, S, *kernel so far]`."""
    spec = stages[index].spec
    count = spec.in_channels * math.prod(spec.kernel)
    identity = torch.eye(count, dtype=weights[0].dtype, device=weights[0].device)
    identity = identity.reshape(count, spec.in_channels, *spec.kernel)
    if index == 0:
        return identity
    return torch.einsum("om...,mi...->oi...", identity, compose(weights[:index], stages[:index]))


def tail_equations(
    metric: Metric, stages: tuple[StageSpec, ...], weights: tuple[Tensor, ...], index: int
) -> tuple[Float[Tensor, "rows rows"], Float[Tensor, "out rows"]]:
    """The lower factor of `C = B Sigma B^T`, and `K = W Sigma B^T`, of what stage `index` sees."""
    B = basis_of(weights, stages, index).flatten(1)
    seen = B @ metric.covariance
    C, K = (seen @ B.T).double(), (metric.weight.flatten(1) @ seen.T).double()
    return cholesky(C), K


def _with_tail(
    metric: Metric, stages: tuple[StageSpec, ...], weights: tuple[Tensor, ...], tail: int
) -> tuple[Tensor, ...]:
    """The last one or two stages in closed form."""
    head = weights[: len(weights) - tail]
    first = stages[len(head)]
    lower, K = tail_equations(metric, stages, weights, len(head))
    regression = torch.cholesky_solve(K.T, lower).T
    if tail == 1:
        return (*head, regression.reshape(weights[-1].shape).to(weights[-1].dtype))
    rank = first.spec.out_channels
    spread = regression @ lower
    U = torch.linalg.eigh(spread @ spread.T).eigenvectors.flip(1)[:, :rank]
    inner = U.T @ regression
    return (*head, *_even(inner, U, weights[-2], weights[-1]))


def _even(inner: Tensor, outer: Tensor, like_inner: Tensor, like_outer: Tensor) -> tuple[Tensor, Tensor]:
    """Share the norms of paired components, padded with zeros up to the stages' shapes."""
    norms = torch.linalg.vector_norm(inner, dim=1)
    scale = norms.clamp_min(norms.max().clamp_min(1e-30) * 1e-8).sqrt()
    inner, outer = inner / scale[:, None], outer * scale
    missing = like_inner.shape[0] - inner.shape[0]
    inner = torch.nn.functional.pad(inner, (0, 0, 0, missing))
    outer = torch.nn.functional.pad(outer, (0, missing))
    return inner.reshape(like_inner.shape).to(like_inner.dtype), outer.reshape(like_outer.shape).to(
        like_outer.dtype
    )


def _stepped(
    metric: Metric, stages: tuple[StageSpec, ...], weights: tuple[Tensor, ...], index: int
) -> tuple[Tensor, ...]:
    """A few steps of preconditioned conjugate gradients on one stage's normal equations."""
    last = weights[-1]
    flat = last.flatten(1)
    target = metric.weight
    if flat.shape[1] == last.shape[1] and flat.shape[0] > flat.shape[1]:  # fewer rows, the same error
        orthonormal, triangle = torch.linalg.qr(flat)
        target = torch.einsum("tp,t...->p...", orthonormal, target)
        weights = (*weights[:-1], triangle.reshape(-1, *last.shape[1:]))

    def composed(weight: Tensor) -> Tensor:
        return compose((*weights[:index], weight, *weights[index + 1 :]), stages)

    @torch.enable_grad()
    def back(kernel: Tensor) -> Tensor:
        leaf = torch.zeros_like(weights[index], requires_grad=True)
        (found,) = torch.autograd.grad(composed(leaf), leaf, kernel.detach())
        return found

    def weighed(kernel: Tensor) -> Tensor:
        return (kernel.flatten(1) @ metric.covariance).reshape(kernel.shape)

    precondition = _preconditioner(metric, stages, weights, index)
    solution = torch.zeros_like(weights[index])
    residual = back(weighed(target - composed(weights[index])))
    direction = shaped = precondition(residual)
    slope = float((residual * shaped).sum())
    for _ in range(STEPS):
        image = back(weighed(composed(direction)))
        curvature = float((direction * image).sum())
        if not (slope > 0 and curvature > 0):
            break
        solution = solution + direction * (slope / curvature)
        residual = residual - image * (slope / curvature)
        shaped = precondition(residual)
        before, slope = slope, float((residual * shaped).sum())
        direction = shaped + direction * (slope / before)
    updated = (*weights[:index], weights[index] + solution, *weights[index + 1 :])
    return (*updated[:-1], last)


def _preconditioner(
    metric: Metric, stages: tuple[StageSpec, ...], weights: tuple[Tensor, ...], index: int
) -> Callable[[Tensor], Tensor]:
    """An approximate inverse of one stage's normal matrix: exact where only pointwise stages follow."""
    shape = weights[index].shape
    dtype = weights[index].dtype
    after = compose(weights[index + 1 :], stages[index + 1 :])
    rows = after.transpose(0, 1).flatten(1) if not _is_depthwise_next(stages, index) else None
    if rows is None:
        after = _dense_after(weights, stages, index)
        rows = after.transpose(0, 1).flatten(1)
    outer = (rows @ rows.T).double()
    basis = basis_of(weights, stages, index)
    marginal = marginal_covariance(metric.covariance, metric.weight.shape[1:], tuple(basis.shape[2:]))
    flat = basis.flatten(1)
    inner = (flat @ marginal @ flat.T).double()
    if not stages[index].spec.is_depthwise:
        left, right = cholesky(outer), cholesky(inner)

        def dense(gradient: Tensor) -> Tensor:
            flat = torch.cholesky_solve(gradient.flatten(1).double(), left)
            return torch.cholesky_solve(flat.T, right).T.reshape(shape).to(dtype)

        return dense
    taps = math.prod(shape[2:])
    if shape[0] * taps > _MOST_DEPTHWISE:
        blocks = inner.reshape(shape[0], taps, shape[0], taps).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        lowers = cholesky(blocks * outer.diagonal()[:, None, None])
        return lambda gradient: (
            torch.cholesky_solve(gradient.double().reshape(shape[0], taps, 1), lowers)
            .reshape(shape)
            .to(dtype)
        )
    whole = cholesky(outer.repeat_interleave(taps, 0).repeat_interleave(taps, 1) * inner)
    return lambda gradient: (
        torch.cholesky_solve(gradient.double().reshape(-1, 1), whole).reshape(shape).to(dtype)
    )


def _is_depthwise_next(stages: tuple[StageSpec, ...], index: int) -> bool:
    return stages[index + 1].spec.is_depthwise


def _dense_after(weights: tuple[Tensor, ...], stages: tuple[StageSpec, ...], index: int) -> Tensor:
    """The stages behind a stage as one kernel, where the first of them is depthwise."""
    count = stages[index].spec.out_channels
    ones = (1,) * (weights[0].ndim - 2)
    identity = torch.eye(count, dtype=weights[0].dtype, device=weights[0].device).reshape(count, count, *ones)
    return reduce(_behind, zip(weights[index + 1 :], stages[index + 1 :], strict=True), identity)


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


def cholesky(matrix: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """The lower factor in float64; the ridge grows until there is one, as singular matrices are normal.

    Raises:
        CalibrationError: The matrix is not finite.
    """
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    mean = matrix.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))
    ridge = RIDGE
    while bool(mean.isfinite().all()) and ridge < math.inf:
        lower, failed = torch.linalg.cholesky_ex(matrix + ridge * mean * eye)
        if not bool(failed.any()):
            found: Tensor = lower
            return found
        ridge *= 100
    raise CalibrationError("products of weights and inputs overflow; scale the network's weights or inputs")
