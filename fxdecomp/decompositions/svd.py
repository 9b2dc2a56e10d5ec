"""Truncated singular value decomposition of a Linear or a pointwise convolution.

    W[t, s] ~ sum_r  U[t, r] (sqrt S)[r] (sqrt S)[r] V[s, r]

    x --pointwise_in: S -> R--> --pointwise_out: R -> T--> y

The stages share the singular values evenly. A stride goes to the first stage (the last, when transposed),
where it costs least. The input product of a recurrent layer is such a matrix, the gates of both directions
below each other; the layer itself, with a narrower input, is then the last stage.
Source: Girshick 2015, Fast R-CNN, section 3.1; the optimality is Eckart and Young 1936.
"""

from __future__ import annotations

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
class SVD(Decomposition):
    """Truncated SVD, rank `(R,)`."""

    name: ClassVar[str] = "svd"
    is_optimal: ClassVar[bool] = True

    def refusal(self, spec: LayerSpec) -> str | None:
        """A wide kernel is not a matrix."""
        if spec.is_pointwise:
            return None
        return "svd takes Linear and 1x1 layers; use channel_svd or spatial_svd for a wider kernel"

    def rank_limits(self, spec: LayerSpec) -> tuple[int, ...]:
        """The rank of a full matrix."""
        return (min(spec.in_channels, spec.out_channels),)

    def stage_specs(self, spec: LayerSpec, rank: tuple[int, ...]) -> tuple[StageSpec, ...]:
        """Two pointwise stages; the stride where it costs least, a recurrence behind both."""
        if spec.transposed or spec.recurrence is not None:
            first = spec.pointwise(spec.in_channels, rank[0], at_output=False)
            second = replace(spec, in_channels=rank[0])
        else:
            first = replace(spec, out_channels=rank[0])
            second = spec.pointwise(rank[0], spec.out_channels, at_output=True)
        return StageSpec("pointwise_in", first), StageSpec("pointwise_out", second)

    def spectra(self, problem: Problem) -> tuple[Spectrum, ...]:
        """The singular values of the matrix."""
        return (problem.spectrum(0),)

    def factors(self, problem: Problem, rank: tuple[int, ...]) -> tuple[Tensor, ...]:
        """`sqrt(S) V^T` and `U sqrt(S)`, truncated. Cost: one SVD, shared between ranks."""
        last, first = problem.truncated(rank[0], 0)
        ones = (1,) * problem.spec.ndim
        return first.reshape(*first.shape, *ones), last.reshape(*last.shape, *ones)

    def estimates(self, problems: Sequence[Problem], grid: RankGrid) -> dict[Rank, float]:
        """The tails of the spectrum."""
        return truncation_errors(self, problems, grid)
