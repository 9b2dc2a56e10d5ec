"""The numerical work at one site, apart from any graph, so that it can run in another process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxdecomp.calibration.moments import Moments
from fxdecomp.decompositions import (
    Decomposition,
    Problem,
    decompose,
    grouped_stage_specs,
    method_for,
    method_named,
    problems_of,
    refusal_of,
)
from fxdecomp.decompositions.calibrated import output_error
from fxdecomp.layers import LayerSpec
from fxdecomp.outcomes import Reason
from fxdecomp.policy.rules import Selection

_HUGE = 1e17
"""Largest weight: beyond, its products with others leave the range of float32."""
_ROWS = 256
"""Output channels that are compared at one time, so that a large layer is not copied whole."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What to do at one site.

    Attributes:
        site: Name of the layer, for messages.
        specs: The geometry at each call; they differ in their input sizes only.
        weight: `[out_channels, in_channels // groups, *kernel]`.
        bias: `[out_channels]` or None.
        selection: Method and rank rule.
        require_saving: Whether the chain must take fewer multiply-accumulates.
        moments: One per group, None for a weight-only decomposition.
    """

    site: str
    specs: tuple[LayerSpec, ...]
    weight: Tensor
    bias: Tensor | None
    selection: Selection
    require_saving: bool = True
    moments: tuple[Moments, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """A chain's weights.

    Attributes:
        method: Name of the method that was used.
        rank: Its rank.
        names: Names of the stages.
        weights: Their weights, in order.
        relative_error: `||W - W'|| / ||W||`.
        output_error: Relative error of the output on the calibration data, None without moments.
        bias: `[out_channels]`, with moments the one that keeps the mean of the output.
    """

    method: str
    rank: tuple[int, ...]
    names: tuple[str, ...]
    weights: tuple[Tensor, ...]
    relative_error: float
    output_error: float | None = None
    bias: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a site is left alone."""

    reason: Reason
    detail: str = ""


@torch.no_grad()
def factorise(task: Task) -> Solution | Obstacle:
    """Choose the rank at one site and compute the chain.

    Raises:
        PolicyError: The rank cannot be meant for this layer.
    """
    spec = task.specs[0]
    obstacle = weight_obstacle(task.weight, spec)
    if obstacle:
        return obstacle
    method = method_for(method_named(task.selection.method), spec.per_group)
    refusal = refusal_of(method, task.specs)
    if refusal:
        return Obstacle(Reason.UNSUITED, refusal)
    problems = problems_of(task.weight, spec, task.moments)
    assert task.selection.rank is not None  # a budget has been resolved by now
    rank = task.selection.rank.choose(method, spec, problems)
    if rank is None:
        return Obstacle(Reason.RANK_ZERO)
    method.check_rank(spec, rank, task.site)
    before = sum(each.macs for each in task.specs)
    after = _chain_macs(method, rank, task.specs)
    if task.require_saving and after >= before:
        shown = rank[0] if len(rank) == 1 else rank
        return Obstacle(
            Reason.NO_SAVING, f"{method.name} at rank {shown} takes {after:,}, the layer {before:,}"
        )
    chain = decompose(method, problems, spec, rank, dtype=task.weight.dtype)
    weights = tuple(stage.weight for stage in chain.stages)
    if not all(bool(torch.isfinite(weight).all()) for weight in weights):
        return Obstacle(Reason.NOT_FINITE, f"{task.weight.dtype} cannot hold the factors of {method.name}")
    composed = chain.composed_weight()
    return Solution(
        method.name,
        rank,
        tuple(stage.name for stage in chain.stages),
        weights,
        relative_error(task.weight, composed),
        _output_error(problems, composed) if task.moments else None,
        _shifted_bias(task, problems, composed) if task.moments else task.bias,
    )


def chain_macs(solution: Solution, specs: Sequence[LayerSpec]) -> int:
    """Multiply-accumulates of a chain over all its calls."""
    return _chain_macs(method_named(solution.method), solution.rank, specs)


def _chain_macs(method: Decomposition, rank: tuple[int, ...], specs: Sequence[LayerSpec]) -> int:
    return sum(s.spec.macs for each in specs for s in grouped_stage_specs(method, each, rank))


def weight_obstacle(weight: Tensor, spec: LayerSpec) -> Obstacle | None:
    """Why no method can decompose a layer, None where one may."""
    if spec.groups > 1 and spec.groups == spec.in_channels:
        return Obstacle(Reason.DEPTHWISE)
    if weight.numel() == 0:
        return Obstacle(Reason.UNSUPPORTED_TENSOR, "it has no elements")
    if not bool(torch.isfinite(weight).all()):
        return Obstacle(Reason.NOT_FINITE)
    if float(weight.abs().max()) > _HUGE:
        return Obstacle(Reason.NOT_FINITE, f"or numbers above {_HUGE:g}, whose products overflow")
    if not bool(weight.any()):
        return Obstacle(Reason.ZERO_WEIGHT)
    return None


def _output_error(problems: tuple[Problem, ...], composed: Tensor) -> float:
    parts = [
        output_error(problem, part.to(problem.weight.dtype))
        for problem, part in zip(problems, composed.chunk(len(problems)), strict=True)
    ]
    lost, power = (sum(column) for column in zip(*parts, strict=True))
    return lost / power if power > 0 else 0.0


def _shifted_bias(task: Task, problems: tuple[Problem, ...], composed: Tensor) -> Tensor:
    """The bias under which the chain's mean output is the layer's: `b + (W - W') E[p]`."""
    shifts = []
    for problem, part in zip(problems, composed.chunk(len(problems)), strict=True):
        assert problem.moments is not None
        rest = problem.weight.flatten(1).double() - part.flatten(1).double()
        shifts.append(rest @ problem.moments.mean.double())
    shift = torch.cat(shifts)
    whole = shift if task.bias is None else task.bias.double() + shift
    return whole.to(task.weight.dtype)


def relative_error(weight: Tensor, composed: Tensor) -> float:
    """`||W - W'|| / ||W||`, scaled by the largest weight: tiny and huge ones neither vanish nor overflow."""
    scale = torch.linalg.vector_norm(weight.flatten(), math.inf).double()
    lost = power = 0.0
    for wanted, got in zip(torch.split(weight, _ROWS), torch.split(composed, _ROWS), strict=True):
        unit = wanted.double() / scale
        lost += float((unit - got.double() / scale).square().sum())
        power += float(unit.square().sum())
    return math.sqrt(lost / power)
