"""Spatial SVD: one stage along each axis of the kernel, full in the channels.

    W[t, s, y, x] ~ sum_r  H[t, r, x] V[r, s, y],    the SVD of the matrix [(t, x), (s, y)]

    x --vertical: k x 1, S -> R--> --horizontal: 1 x k, R -> T--> y

The axis that makes the pair cheaper goes first. Source: Jaderberg et al. 2014, arXiv 1405.3866, scheme 2; in
closed form Tai et al. 2016, arXiv 1511.06067.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

from torch import Tensor

from fxdecomp.decompositions.base import Decomposition
from fxdecomp.decompositions.estimating import is_calibrated, nested_errors, truncation_errors
from fxdecomp.decompositions.problem import Problem, Spectrum
from fxdecomp.decompositions.rank_grid import Rank, RankGrid
from fxdecomp.layers import LayerSpec, StageSpec


@final
@dataclass(frozen=True, slots=True)
class SpatialSVD(Decomposition):
    """Truncated SVD that separates the two axes of a 2-D kernel, rank `(R,)`."""

    name: ClassVar[str] = "spatial_svd"
    alternation_gain: ClassVar[float] = 1.2

    def refusal(self, spec: LayerSpec) -> str | None:
        """Two axes, no more and no fewer."""
        return None if spec.ndim == 2 else "spatial_svd takes 2-D convolutions; use channel_svd or tucker2"

    def rank_limits(self, spec: LayerSpec) -> tuple[int, ...]:
        """The rank of a full matrix `[(out, second axis), (in, first axis)]`."""
        first, second = _order(spec)
        return (min(spec.in_channels * spec.kernel[first], spec.out_channels * spec.kernel[second]),)

    def rank_channels(self, spec: LayerSpec) -> tuple[int, ...]:
        """The smaller of input and output channels."""
        return (min(spec.in_channels, spec.out_channels),)

    def stage_specs(self, spec: LayerSpec, rank: tuple[int, ...]) -> tuple[StageSpec, ...]:
        """One stage an axis, the cheaper order."""
        return _stages(spec, rank[0], *_order(spec))

    def spectra(self, problem: Problem) -> tuple[Spectrum, ...]:
        """The singular values of the matrix `[(out, second axis), (in, first axis)]`."""
        return (problem.spectrum(0, 2 + _order(problem.spec)[1]),)

    def factors(self, problem: Problem, rank: tuple[int, ...]) -> tuple[Tensor, ...]:
        """The two stages' kernels. Cost: one SVD, shared between ranks."""
        spec = problem.spec
        first, second = _order(spec)
        last, start = problem.truncated(rank[0], 0, 2 + second)
        before = start.reshape(rank[0], spec.in_channels, spec.kernel[first]).unsqueeze(2 + second)
        after = last.reshape(spec.out_channels, spec.kernel[second], rank[0]).movedim(1, 2)
        return before, after.unsqueeze(2 + first)

    def estimates(self, problems: Sequence[Problem], grid: RankGrid) -> dict[Rank, float]:
        """The tails of the spectrum; with calibration the second stage is fitted behind nested first ones."""
        if not is_calibrated(problems):
            return truncation_errors(self, problems, grid)
        return nested_errors(self, problems, grid)


def _stages(spec: LayerSpec, rank: int, first: int, second: int) -> tuple[StageSpec, ...]:
    names = ("vertical", "horizontal")
    before = spec.along((first,), spec.in_channels, rank)
    after = replace(spec, input_size=before.output_size).along((second,), rank, spec.out_channels)
    return StageSpec(names[first], before), StageSpec(names[second], after)


def _order(spec: LayerSpec) -> tuple[int, int]:
    """Which axis goes first; the same for every rank, as both stages cost in proportion to it."""
    costs = {
        order: math.fsum(stage.spec.macs for stage in _stages(spec, 1, *order)) for order in ((0, 1), (1, 0))
    }
    return (0, 1) if costs[0, 1] <= costs[1, 0] else (1, 0)
