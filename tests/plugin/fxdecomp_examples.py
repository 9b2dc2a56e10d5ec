"""Two methods of a package of somebody else's, of which nothing in fxdecomp knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from fxdecomp.decompositions import Decomposition, Problem, Spectrum
from fxdecomp.decompositions.tucker2 import Tucker2
from fxdecomp.layers import LayerSpec, StageSpec


@final
@dataclass(frozen=True, slots=True)
class FirstFilters(Decomposition):
    """Keeps the first filters and mixes the others of them: far from the best of a rank."""

    name: ClassVar[str] = "first_filters"

    def refusal(self, spec: LayerSpec) -> str | None:
        return None if spec.ndim and not spec.transposed else "it takes convolutions only"

    def rank_limits(self, spec: LayerSpec) -> tuple[int, ...]:
        return (spec.out_channels,)

    def stage_specs(self, spec: LayerSpec, rank: tuple[int, ...]) -> tuple[StageSpec, ...]:
        kept = spec.along(tuple(range(spec.ndim)), spec.in_channels, rank[0])
        return (
            StageSpec("spatial", kept),
            StageSpec("mix", spec.pointwise(rank[0], spec.out_channels, at_output=True)),
        )

    def spectra(self, problem: Problem) -> tuple[Spectrum, ...]:
        return (problem.spectrum(0),)

    def factors(self, problem: Problem, rank: tuple[int, ...]) -> tuple[Tensor, ...]:
        rows = problem.unfold(0)
        mix = torch.linalg.lstsq(rows[: rank[0]].T, rows.T).solution.T
        return problem.weight[: rank[0]], mix.reshape(*mix.shape, *(1,) * problem.spec.ndim)


@final
@dataclass(frozen=True, slots=True)
class TwoRanks(Decomposition):
    """Tucker-2 under another name, of which nothing in the package knows how its errors are estimated."""

    name: ClassVar[str] = "two_ranks"
    rise: ClassVar[float] = Tucker2.rise

    def refusal(self, spec: LayerSpec) -> str | None:
        return Tucker2().refusal(spec)

    def rank_limits(self, spec: LayerSpec) -> tuple[int, ...]:
        return Tucker2().rank_limits(spec)

    def stage_specs(self, spec: LayerSpec, rank: tuple[int, ...]) -> tuple[StageSpec, ...]:
        return Tucker2().stage_specs(spec, rank)

    def spectra(self, problem: Problem) -> tuple[Spectrum, ...]:
        return Tucker2().spectra(problem)

    def factors(self, problem: Problem, rank: tuple[int, ...]) -> tuple[Tensor, ...]:
        return Tucker2().factors(problem, rank)
