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
from fxdecomp.chains import Chain, Form
from fxdecomp.decompositions.problem import Problem, Spectrum
from fxdecomp.decompositions.rank_grid import Rank, RankGrid
from fxdecomp.errors import PolicyError
from fxdecomp.fitting.alternation import refine
from fxdecomp.fitting.tails import tail_length
from fxdecomp.layers import LayerSpec, StageSpec


class Decomposition(ABC):
    """A low-rank decomposition of one ungrouped layer's weight.

    Subclasses are final and hold their options as dataclass fields.

    Attributes:
        name: What a policy calls it.
        most_weights: Weights of a layer up to which `auto` considers it; None for any number.
        is_optimal: Whether `factors` of a problem with moments have the least output error of their rank.
        rise: By what share the error at a higher rank may exceed that at a lower one: nothing where the
            factors are the best of their rank.
        alternation_gain: What the squared output error that `estimates` gives falls by, under calibration,
            when all stages are fitted (docs/budgets.md); 1 where `estimates` fits them.
    """

    name: ClassVar[str]
    most_weights: ClassVar[int | None] = None
    is_optimal: ClassVar[bool] = False
    rise: ClassVar[float] = 0.0
    alternation_gain: ClassVar[float] = 1.0

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

    def estimates(self, problems: Sequence[Problem], grid: RankGrid) -> dict[Rank, float]:
        """The squared relative errors that ranks are expected to have: what a budget chooses among.

        Of the output where the problems have moments, else of the weight. This default factorises at every
        rank and measures, so that it is right for any method; one that knows its errors sooner says so here.

        Args:
            problems: One per group, all of one geometry.
            grid: Which ranks to consider.
        """
        errors = {}
        spec, dtype = problems[0].spec, problems[0].weight.dtype
        for rank in grid.diagonal(self.rank_limits(spec)):
            chain = decompose(self, problems, spec.times_groups(len(problems)), rank, dtype=dtype)
            errors[rank] = measured_error(problems, chain.composed_weight().chunk(len(problems)))
        return errors

    def form(self, spec: LayerSpec, rank: tuple[int, ...]) -> Form:
        """The stages of a layer with groups: each group is decomposed at the same rank, side by side."""
        stages = self.stage_specs(spec.per_group, rank)
        return Form(
            self.name,
            rank,
            tuple(StageSpec(stage.name, stage.spec.times_groups(spec.groups)) for stage in stages),
            spec.groups,
        )

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
    orders = {method.form(spec, least).names for spec in specs}
    if len(orders) > 1:
        return "its calls on inputs of other sizes want the axes in another order"
    return None


def decompose(
    method: Decomposition,
    problems: Sequence[Problem],
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
    form = method.form(spec.per_group, rank)
    chains = [
        Chain(form, method.factors(problem, rank))
        if problem.moments is None
        else fitted(method, problem, form)
        for problem in problems
    ]
    whole = Chain.joined(method.form(spec, rank), chains)
    return Chain(whole.form, tuple(weight.to(dtype).contiguous() for weight in whole.weights), bias)


def fitted(method: Decomposition, problem: Problem, form: Form) -> Chain:
    """The chain of one group, fitted to the moments of the layer's inputs where those hold anything.

    A method's factors that are the optimum in the metric of the moments are taken. Else the fit starts from
    the factors of the bare weight and from those of the whitened one, and takes the better outcome: never
    worse than weight-only in that metric.

    Cost: that of `factors`, and `rank d^2` for every step of the iteration, d the size of an input patch.
    """

    def start(given: Problem) -> Chain:
        return Chain(form, method.factors(given, form.rank))

    if not problem.power > 0:
        return start(problem.bare)
    if method.is_optimal:
        return start(problem)
    starts = start(problem.bare), start(problem)
    if tail_length(form) == len(form.stages):  # there is nothing to alternate with
        return min(starts, key=lambda chain: problem.lost(chain.composed_weight()))
    return refine(problem.metric, starts)


def measured_error(problems: Sequence[Problem], kernels: Sequence[Tensor]) -> float:
    """The squared relative error of all groups' kernels: of the output with moments, else of the weight."""
    lost = sum(problem.lost(kernel) for problem, kernel in zip(problems, kernels, strict=True))
    power = sum(problem.power for problem in problems)
    return lost / power if power > 0 else 0.0


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


def _show(rank: tuple[int, ...]) -> str:
    return str(rank[0]) if len(rank) == 1 else str(rank)
