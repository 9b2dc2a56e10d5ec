"""All stages of a chain fitted to the data: least squares in the metric of the layer's input patches.

    minimise  tr (W - W') Sigma (W - W')^T,    W' = the composed kernel, linear in every stage

which is the output's mean squared error, the mean being put right by the bias. With the other stages held,
the tail has a closed form (`tails`); every stage before it is improved by conjugate gradients on its normal
equations, preconditioned by their Kronecker approximation (output side times input side), from what the stage
is. No step raises the error.

Source: Zhang et al. 2015, arXiv 1505.06798, section 3.2 (decompositions in the metric of the responses). The
alternation over all stages is our own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fxdecomp.chains import Chain, composed
from fxdecomp.fitting.metric import Metric, marginal_covariance
from fxdecomp.fitting.tails import seen_by, tail_length, with_tail
from fxdecomp.layers import StageSpec
from fxdecomp.linalg.cholesky import cholesky

SWEEPS = 8
STEPS = 2
TOLERANCE = 4e-3
SOLVED = 1e-6
"""Share of the first step's gain below which no step is worth it: the preconditioner was exact, or nearly."""
_EXACT = 1e-12
_MOST_DEPTHWISE = 4096


def refine(metric: Metric, starts: Sequence[Chain]) -> Chain:
    """Lower the output error of a chain, stage by stage, from the most promising start.

    Args:
        metric: The layer and the metric, of one group.
        starts: Chains of one form to start from.

    Returns:
        A chain whose output error is never above that of any start, in the metric.
    """
    form = starts[0].form
    tail = tail_length(form)
    known = [*starts, *(with_tail(metric, start, tail) for start in starts)]
    errors = [metric.error(chain.composed_weight()) for chain in known]
    error = min(errors)
    best = known[errors.index(error)]
    for _ in range(SWEEPS):
        if error < _EXACT:
            break
        weights = best.weights
        for index in range(len(form.stages) - tail):
            weights = _stepped(metric, form.stages, weights, index)
        current = with_tail(metric, replace(best, weights=weights), tail)
        found = metric.error(current.composed_weight())
        if not found < error:
            break
        gain, best, error = error - found, current, found
        if gain < TOLERANCE * error:
            break
    return best


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

    def kernel_of(weight: Tensor) -> Tensor:
        return composed(stages, (*weights[:index], weight, *weights[index + 1 :]))

    @torch.enable_grad()
    def back(kernel: Tensor) -> Tensor:
        leaf = torch.zeros_like(weights[index], requires_grad=True)
        (found,) = torch.autograd.grad(kernel_of(leaf), leaf, kernel.detach())
        return found

    def weighed(kernel: Tensor) -> Tensor:
        return (kernel.flatten(1) @ metric.covariance).reshape(kernel.shape)

    precondition = _preconditioner(metric, stages, weights, index)
    solution = torch.zeros_like(weights[index])
    residual = back(weighed(target - kernel_of(weights[index])))
    direction = shaped = precondition(residual)
    first = slope = float((residual * shaped).sum())
    for _ in range(STEPS):
        image = back(weighed(kernel_of(direction)))
        curvature = float((direction * image).sum())
        if not curvature > 0:
            break
        solution = solution + direction * (slope / curvature)
        residual = residual - image * (slope / curvature)
        shaped = precondition(residual)
        before, slope = slope, float((residual * shaped).sum())
        if not slope > SOLVED * first:
            break
        direction = shaped + direction * (slope / before)
    updated = (*weights[:index], weights[index] + solution, *weights[index + 1 :])
    return (*updated[:-1], last)


def _preconditioner(
    metric: Metric, stages: tuple[StageSpec, ...], weights: tuple[Tensor, ...], index: int
) -> Callable[[Tensor], Tensor]:
    """An approximate inverse of one stage's normal matrix: exact where only pointwise stages follow."""
    shape = weights[index].shape
    dtype = weights[index].dtype
    rows = _behind(stages, weights, index).transpose(0, 1).flatten(1)
    outer = (rows @ rows.T).double()
    kernels = (stage.spec.kernel for stage in stages[: index + 1])
    kept = tuple(max(sizes) for sizes in zip(*kernels, strict=True))
    marginal = marginal_covariance(metric.covariance, metric.weight.shape[1:], kept)
    seen = seen_by(marginal, stages, weights, index)
    inner = seen_by(seen.T, stages, weights, index).double()
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
    blown_up = outer.to(dtype).repeat_interleave(taps, 0).repeat_interleave(taps, 1)
    whole = cholesky(blown_up * inner.to(dtype))  # large, and what its rounding leaves the next steps take
    return lambda gradient: torch.cholesky_solve(gradient.reshape(-1, 1), whole).reshape(shape)


def _behind(stages: tuple[StageSpec, ...], weights: tuple[Tensor, ...], index: int) -> Tensor:
    """The stages behind a stage as one kernel."""
    specs, factors = stages[index + 1 :], weights[index + 1 :]
    if not specs[0].spec.is_depthwise:
        return composed(specs, factors)
    count = stages[index].spec.out_channels  # a depthwise kernel alone does not say which channel it is for
    ones = (1,) * (weights[0].ndim - 2)
    identity = torch.eye(count, dtype=weights[0].dtype, device=weights[0].device).reshape(count, count, *ones)
    return composed((stages[index], *specs), (identity, *factors))
