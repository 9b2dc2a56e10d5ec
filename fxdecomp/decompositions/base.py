"""What every decomposition is: geometry first, factors second.

A decomposition never sees a graph, a bias or a module. It says whether a geometry suits it, what stages a
rank would give (so that costs are known before anything is factorised), and computes the stages' weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fxdecomp.calibration.moments import Moments
from fxdecomp.decompositions.calibrated import calibrated_factors
from fxdecomp.decompositions.problem import Problem, Spectrum
from fxdecomp.errors import PolicyError
from fxdecomp.layers import Chain, LayerSpec, Stage, StageSpec


class Decomposition(ABC):
    """A low-rank decomposition of one ungrouped layer's weight.

    Subclasses are final and hold their options as dataclass fields.
    """

    name: ClassVar[str]

    @abstractmethod
    def refusal(self, spec: LayerSpec) -> str | None:
        """Why this method does not suit a geometry, or None where it does."""

    @abstractmethod
    def rank_limits(self, spec: LayerSpec) -> tuple[int, ...]:
        """The highest useful rank, one entry per rank of the method."""

    def rank_channels(self, spec: LayerSpec) -> tuple[int, ...]:
        """The number of channels that `Ratio` takes its share of, one entry per rank."""
        return self.rank_limits(spec)

    @abstractmethod
    def stage_specs(self, spec: LayerSpec, rank: tuple[int, ...]) -> tuple[StageSpec, ...]:
        """The stages that this rank gives, in order."""

    @abstractmethod
    def spectra(self, problem: Problem) -> tuple[Spectrum, ...]:
        """The spectra that rank rules look at; `combine_ranks` makes ranks of what they choose."""

    def combine_ranks(self, chosen: tuple[int, ...]) -> tuple[int, ...]:
        """The method's ranks from one chosen number per spectrum."""
        return chosen

    @abstractmethod
    def factors(self, problem: Problem, rank: tuple[int, ...]) -> tuple[Tensor, ...]:
        """The weights of the stages, each in the shape that `stage_specs` states."""

    def check_rank(self, spec: LayerSpec, rank: tuple[int, ...], site: str) -> None:
        """Raise `PolicyError` unless `rank` has the right length and lies within the limits.

        Args:
            spec: The layer, with its groups.
            rank: One entry per rank of the method.
            site: The layer's name, for the message.
        """
        limits = self.rank_limits(spec.per_group)
        where = f'"{site}" ({spec}): rank {_show(rank)}'
        if len(rank) != len(limits):
            raise PolicyError(f"{where} has {len(rank)} entries, {self.name} takes {len(limits)}")
        for mode, (value, limit) in enumerate(zip(rank, limits, strict=True)):
            if value < 1:
                raise PolicyError(f"{where} must be positive in every mode; use 1 or more, or Energy(0.9)")
            if value > limit:
                in_mode = f" in mode {mode}" if len(limits) > 1 else ""
                raise PolicyError(f"{where} exceeds {_show(limits)}{in_mode}; lower it, or use Energy(0.9)")


def refusal_of(method: Decomposition, specs: Sequence[LayerSpec]) -> str | None:
    """Why a method does not suit a layer with these geometries at its calls, None where it does."""
    refused = method.refusal(specs[0].per_group)
    if refused is not None or len(specs) == 1:
        return refused
    least = (1,) * len(method.rank_limits(specs[0].per_group))
    orders = {tuple(stage.name for stage in grouped_stage_specs(method, spec, least)) for spec in specs}
    if len(orders) > 1:
        return "its calls on inputs of other sizes want the axes in another order"
    return None


def grouped_stage_specs(
    method: Decomposition, spec: LayerSpec, rank: tuple[int, ...]
) -> tuple[StageSpec, ...]:
    """The stages of a layer with groups: each group is decomposed at the same rank, side by side."""
    stages = method.stage_specs(spec.per_group, rank)
    return tuple(StageSpec(stage.name, stage.spec.times_groups(spec.groups)) for stage in stages)


def decompose(
    method: Decomposition,
    problems: tuple[Problem, ...],
    spec: LayerSpec,
    rank: tuple[int, ...],
    *,
    dtype: torch.dtype,
    bias: Tensor | None = None,
) -> Chain:
    """Factorise a layer, group by group.

    Args:
        method: The decomposition.
        problems: One per group.
        spec: The whole layer, with its groups.
        rank: The rank of each group.
        dtype: Type of the stages' weights.
        bias: The layer's bias, `[out_channels]`; it goes on the last stage, behind every padding.

    Returns:
        The chain that replaces the layer.
    """
    stage_specs = grouped_stage_specs(method, spec, rank)
    by_group = [_factors(method, problem, rank) for problem in problems]
    weights = [torch.cat(parts).to(dtype).contiguous() for parts in zip(*by_group, strict=True)]
    last = len(weights) - 1
    return Chain(
        tuple(
            Stage(stage.name, stage.spec, weight, bias if index == last else None)
            for index, (stage, weight) in enumerate(zip(stage_specs, weights, strict=True))
        )
    )


def problems_of(
    weight: Tensor, spec: LayerSpec, moments: tuple[Moments, ...] | None = None
) -> tuple[Problem, ...]:
    """The problems of a layer's groups, in at least float32.

    Args:
        weight: `[out_channels, in_channels // groups, *kernel]`, any floating type.
        spec: The layer.
        moments: One per group, or None.
    """
    working = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    known = moments or (None,) * spec.groups
    return tuple(
        Problem(part.contiguous(), spec.per_group, known[group])
        for group, part in enumerate(working.chunk(spec.groups))
    )


def _factors(method: Decomposition, problem: Problem, rank: tuple[int, ...]) -> tuple[Tensor, ...]:
    known = problem.moments is not None
    return calibrated_factors(method, problem, rank) if known else method.factors(problem, rank)


def _show(rank: tuple[int, ...]) -> str:
    return str(rank[0]) if len(rank) == 1 else str(rank)
