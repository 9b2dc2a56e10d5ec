"""Channel SVD: fewer filters, then a pointwise stage that mixes them.

    W[t, (s, y, x)] ~ sum_r  U[t, r] V[r, (s, y, x)]

    x --spatial: k x k, S -> R--> --pointwise_out: R -> T--> y

The stride and the padding stay with the spatial stage. Source: Zhang et al. 2015, arXiv 1505.06798, section
3.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

from torch import Tensor

from fxdecomp.decompositions.base import Decomposition
from fxdecomp.decompositions.estimating import truncation_errors
from fxdecomp.decompositions.problem import Problem, Spectrum
from fxdecomp.decompositions.rank_grid import Rank, RankGrid
from fxdecomp.layers import LayerSpec, StageSpec


@final
@dataclass(frozen=True, slots=True)
class ChannelSVD(Decomposition):
    """Truncated SVD of the output unfolding, rank `(R,)`."""

    name: ClassVar[str] = "channel_svd"
    is_optimal: ClassVar[bool] = True

    def refusal(self, spec: LayerSpec) -> str | None:
        """Any convolution will do."""
        return None if spec.ndim else "channel_svd takes convolutions; use svd for a Linear"

    def rank_limits(self, spec: LayerSpec) -> tuple[int, ...]:
        """The rank of a full output unfolding."""
        return (min(spec.out_channels, spec.in_channels * math.prod(spec.kernel)),)

    def rank_channels(self, spec: LayerSpec) -> tuple[int, ...]:
        """The output channels: the filters that are kept are a share of them."""
        return (spec.out_channels,)

    def stage_specs(self, spec: LayerSpec, rank: tuple[int, ...]) -> tuple[StageSpec, ...]:
        """The layer with R filters, then a pointwise stage."""
        return (
            StageSpec("spatial", replace(spec, out_channels=rank[0])),
            StageSpec("pointwise_out", spec.pointwise(rank[0], spec.out_channels, at_output=True)),
        )

    def spectra(self, problem: Problem) -> tuple[Spectrum, ...]:
        """The singular values of the output unfolding."""
        return (problem.spectrum(0),)

    def factors(self, problem: Problem, rank: tuple[int, ...]) -> tuple[Tensor, ...]:
        """`V` as filters and `U` as a pointwise stage. Cost: one SVD, shared between ranks."""
        last, first = problem.truncated(rank[0], 0)
        spec = problem.spec
        return first.reshape(rank[0], spec.in_channels, *spec.kernel), last.reshape(
            *last.shape, *(1,) * spec.ndim
        )

    def estimates(self, problems: Sequence[Problem], grid: RankGrid) -> dict[Rank, float]:
        """The tails of the spectrum."""
        return truncation_errors(self, problems, grid)
