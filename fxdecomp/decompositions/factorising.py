"""The numerical work at one site, apart from any graph, so that it can run in another process."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from fxdecomp.chains import Chain, Form
from fxdecomp.decompositions import (
    Decomposition,
    Problem,
    Rank,
    decompose,
    method_for,
    method_named,
    problems_of,
    refusal_of,
)
from fxdecomp.decompositions.base import measured_error
from fxdecomp.layers import Count, LayerSpec
from fxdecomp.reasons import Reason, Refusal

_HUGE = 1e17
"""Largest weight: beyond, its products with others leave the range of float32."""
_ROWS = 256
"""Output channels that are compared at one time, so that a large layer is not copied whole."""


@runtime_checkable
class RankChooser(Protocol):
    """What chooses a rank: a rank rule, of which this room knows no more."""

    def choose(self, method: Decomposition, spec: LayerSpec, problems: tuple[Problem, ...]) -> Rank | None:
        """The rank for one layer, or None where nothing is worth keeping."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What to do at one site.

    Attributes:
        site: Name of the layer, for messages.
        specs: The geometry at each call; they differ in their input sizes only.
        weight: `[out_channels, in_channels // groups, *kernel]`.
        bias: `[out_channels]` or None.
        method: Name of the method.
        rank: Chooses the rank; None where a budget has still to decide.
        floor: Least share of its own cost that a budget must leave to the layer.
        require_saving: Whether the chain must take fewer multiply-accumulates.
        problems: One per group, with moments for a fit to data; None to make them of the weight alone.
    """

    site: str
    specs: tuple[LayerSpec, ...]
    weight: Tensor
    bias: Tensor | None
    method: str
    rank: RankChooser | None
    floor: float = 0.0
    require_saving: bool = True
    problems: tuple[Problem, ...] | None = None

    @property
    def key(self) -> Hashable:
        """Tasks of one layer with equal keys have one solution."""
        return self.site, self.method, self.rank, self.require_saving


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """The chain of a layer, and how far it is from it.

    Attributes:
        chain: At the geometry of the first call; with moments its bias keeps the mean of the output.
        relative_error: `||W - W'|| / ||W||`.
        output_error: Relative squared error of the output on the calibration data, None without moments.
    """

    chain: Chain
    relative_error: float
    output_error: float | None = None

    def state(self) -> dict[str, Any]:
        """All of it as tensors and plain data."""
        form = self.chain.form
        return {
            "chain": (form.method, form.rank, list(self.chain.weights), self.chain.bias),
            "errors": (self.relative_error, self.output_error),
        }

    @staticmethod
    def restored(spec: LayerSpec, state: Mapping[str, Any]) -> Solution:
        """What `state` gave, of a layer of that geometry."""
        method, rank, weights, bias = state["chain"]
        form = method_named(method).form(spec, tuple(rank))
        return Solution(Chain(form, tuple(weights), bias), *state["errors"])

    def forms_at(self, specs: Sequence[LayerSpec]) -> tuple[Form, ...]:
        """The form of the chain at each of its layer's calls."""
        form = self.chain.form
        return forms_of(method_named(form.method), form.rank, specs)

    def count_at(self, specs: Sequence[LayerSpec]) -> Count:
        """What the chain takes over all of its layer's calls."""
        return Count(sum(form.macs for form in self.forms_at(specs)), self.chain.params)


@torch.no_grad()
def factorise(task: Task) -> Solution | Refusal:
    """Choose the rank at one site and compute the chain.

    Raises:
        PolicyError: The rank cannot be meant for this layer.
    """
    spec = task.specs[0]
    if (refusal := weight_refusal(task.weight, spec)) is not None:
        return refusal
    method = method_for(method_named(task.method), spec.per_group)
    if (unsuited := refusal_of(method, task.specs)) is not None:
        return Refusal(Reason.UNSUITED, unsuited)
    problems = task.problems or problems_of(task.weight, spec)
    rank = _chosen_rank(task, method, problems)
    if isinstance(rank, Refusal):
        return rank
    chain = decompose(method, problems, spec, rank, dtype=task.weight.dtype, bias=task.bias)
    if not all(bool(torch.isfinite(weight).all()) for weight in chain.weights):
        return Refusal(Reason.NOT_FINITE, f"{task.weight.dtype} cannot hold the factors of {method.name}")
    composed = chain.composed_weight()
    error = relative_error(task.weight, composed)
    if problems[0].moments is None:
        return Solution(chain, error)
    shifted = replace(chain, bias=_shifted_bias(task, problems, composed))
    return Solution(shifted, error, measured_error(problems, composed.chunk(len(problems))))


def _chosen_rank(task: Task, method: Decomposition, problems: tuple[Problem, ...]) -> Rank | Refusal:
    assert task.rank is not None  # a budget has decided by now
    rank = task.rank.choose(method, task.specs[0], problems)
    if rank is None:
        return Refusal(Reason.RANK_ZERO)
    method.check_rank(task.specs[0], rank, task.site)
    before = sum(each.macs for each in task.specs)
    after = sum(form.macs for form in forms_of(method, rank, task.specs))
    if not task.require_saving or after < before:
        return rank
    shown = rank[0] if len(rank) == 1 else rank
    return Refusal(Reason.NO_SAVING, f"{method.name} at rank {shown} takes {after:,}, the layer {before:,}")


def forms_of(method: Decomposition, rank: Rank, specs: Sequence[LayerSpec]) -> tuple[Form, ...]:
    """The form of a layer's chain at each of its calls."""
    return tuple(method.form(spec, rank) for spec in specs)


def weight_refusal(weight: Tensor, spec: LayerSpec) -> Refusal | None:
    """Why no method can decompose a layer, None where one may."""
    if spec.groups > 1 and spec.groups == spec.in_channels:
        return Refusal(Reason.DEPTHWISE)
    if weight.numel() == 0:
        return Refusal(Reason.UNSUPPORTED_TENSOR, "it has no elements")
    largest = max(map(abs, map(float, weight.aminmax())))  # NaN where one is
    if not math.isfinite(largest):
        return Refusal(Reason.NOT_FINITE)
    if largest > _HUGE:
        return Refusal(Reason.NOT_FINITE, f"or numbers above {_HUGE:g}, whose products overflow")
    if not largest:
        return Refusal(Reason.ZERO_WEIGHT)
    return None


def _shifted_bias(task: Task, problems: tuple[Problem, ...], composed: Tensor) -> Tensor:
    """The bias under which the chain's mean output is the layer's: `b + (W - W') E[p]`."""
    shifts = []
    for problem, part in zip(problems, composed.chunk(len(problems)), strict=True):
        assert problem.moments is not None
        mean = problem.moments.mean.double()
        rows = zip(
            torch.split(problem.weight.flatten(1), _ROWS), torch.split(part.flatten(1), _ROWS), strict=True
        )
        shifts += [(wanted.double() - got.double()) @ mean for wanted, got in rows]
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
