"""Canonical polyadic decomposition: every term is a product of vectors.

    W[t, s, y, x] ~ sum_r  A[t, r] B[s, r] C[y, r] D[x, r]

    x --pointwise_in: S -> R--> --depthwise: k x 1--> --depthwise: 1 x k--> --pointwise_out: R -> T--> y

The stride and the padding of an axis stay with the depthwise stage of that axis. Source: Lebedev et al.
2014, arXiv 1412.6553, section 3.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, final

from torch import Tensor

from fxdecomp.chains import Chain
from fxdecomp.decompositions.base import Decomposition, measured_error
from fxdecomp.decompositions.estimating import is_calibrated, tail_error
from fxdecomp.decompositions.polyadic.fit import Effort, fit_polyadic
from fxdecomp.decompositions.problem import Problem, Spectrum
from fxdecomp.decompositions.rank_grid import Rank, RankGrid
from fxdecomp.decompositions.spatial import SpatialStep, spatial_stages, spatial_steps, step_kernel
from fxdecomp.layers import LayerSpec, StageSpec

_SHARES = (0.25, 0.5, 1.0, 1.5)
"""Of the channels: the ranks that a budget considers."""
_SHORT_RUN, _LEAST_RUN = 15, 8
_SWEPT = 18_000_000_000
"""Terms times weights that a short run goes over: 15 sweeps of 512 terms over a 3x3 kernel of 512."""


@dataclass(frozen=True, slots=True)
class CanonicalPolyadic(Decomposition):
    """What the forms of the decomposition share; they differ in how depthwise stages share the axes.

    Attributes:
        tolerance: The iteration stops when the relative error falls by less than this share of itself.
        iterations: The most that are taken on the compressed kernel, and again on the kernel itself.
    """

    alternation_gain: ClassVar[float] = 1.5
    tolerance: float = 5e-5
    iterations: int = 100

    @abstractmethod
    def steps(self, spec: LayerSpec) -> tuple[SpatialStep, ...]:
        """The depthwise stages."""

    def refusal(self, spec: LayerSpec) -> str | None:
        """Any convolution will do."""
        return None if spec.ndim else f"{self.name} takes convolutions; use svd for a Linear"

    def rank_limits(self, spec: LayerSpec) -> tuple[int, ...]:
        """A rank at which an exact decomposition surely exists: the product of all sizes but the largest."""
        sizes = self._sizes(spec)
        return (math.prod(sizes) // max(sizes),)

    def rank_channels(self, spec: LayerSpec) -> tuple[int, ...]:
        """The larger of input and output channels; the rank of a kernel is often higher than either."""
        return (max(spec.in_channels, spec.out_channels),)

    def stage_specs(self, spec: LayerSpec, rank: tuple[int, ...]) -> tuple[StageSpec, ...]:
        """Pointwise, depthwise, pointwise."""
        steps = self.steps(spec)
        channels = rank * (len(steps) + 1)
        prefix = "depthwise_" if len(steps) > 1 else ""
        return (
            StageSpec("pointwise_in", spec.pointwise(spec.in_channels, rank[0], at_output=False)),
            *spatial_stages(spec, steps, channels, depthwise=True, prefix=prefix),
            StageSpec("pointwise_out", spec.pointwise(rank[0], spec.out_channels, at_output=True)),
        )

    def spectra(self, problem: Problem) -> tuple[Spectrum, ...]:
        """The singular values of the output and of the input unfolding."""
        return problem.spectrum(0), problem.spectrum(1)

    def combine_ranks(self, chosen: tuple[int, ...]) -> tuple[int, ...]:
        """The larger of the two: no fewer terms can span what both unfoldings hold."""
        return (max(chosen),)

    def factors(self, problem: Problem, rank: tuple[int, ...]) -> tuple[Tensor, ...]:
        """The vectors of all terms. Cost: two SVDs shared by all ranks, two products an iteration."""
        spec = problem.spec
        steps = self.steps(spec)
        axes = [2 + axis for step in steps for axis in step.axes]
        tensor = problem.weight.permute(0, 1, *axes).reshape(self._sizes(spec))
        effort = Effort(self.tolerance, self.iterations)
        fit = fit_polyadic(tensor, lambda mode: problem.left_svd(mode)[0], rank[0], effort)
        A, B, *spatial = fit.factors
        ones = (1,) * spec.ndim
        depthwise = (
            factor.T.reshape(rank[0], 1, *step_kernel(spec, step))
            for factor, step in zip(spatial, steps, strict=True)
        )
        return (B.T.reshape(*B.T.shape, *ones), *depthwise, A.reshape(*A.shape, *ones))

    def estimates(self, problems: Sequence[Problem], grid: RankGrid) -> dict[Rank, float]:
        """A short run of the iteration at a few ranks; with calibration the last stage is fitted anew.

        Of a very large kernel ranks above the least are left out where even the shortest run takes long.
        """
        spec = problems[0].spec
        (channels,), (limit,) = self.rank_channels(spec), self.rank_limits(spec)
        aligned = (min(grid.aligned(round(share * channels), limit), limit) for share in _SHARES)
        return {
            (rank,): problems[0].once(f"{self.name} {rank}", partial(self._soon, problems, (rank,)))
            for index, rank in enumerate(dict.fromkeys(aligned))  # those of finer grids are often the same
            if not index or _LEAST_RUN * rank * problems[0].weight.numel() <= _SWEPT
        }

    def _soon(self, problems: Sequence[Problem], rank: Rank) -> float:
        """The error after a few sweeps, of which a large kernel at a high rank gets fewer."""
        sweeps = int(_SWEPT / (rank[0] * problems[0].weight.numel()))
        return replace(self, iterations=max(_LEAST_RUN, min(sweeps, _SHORT_RUN)))._reached(problems, rank)

    def _reached(self, problems: Sequence[Problem], rank: Rank) -> float:
        """The error that the iteration ends with."""
        form = self.form(problems[0].spec, rank)
        chains = [Chain(form, self.factors(problem.bare, rank)) for problem in problems]
        if is_calibrated(problems):
            return tail_error(problems, chains)
        return measured_error(problems, [chain.composed_weight() for chain in chains])

    def _sizes(self, spec: LayerSpec) -> tuple[int, ...]:
        steps = (math.prod(step_kernel(spec, step)) for step in self.steps(spec))
        return (spec.out_channels, spec.in_channels, *steps)


@final
@dataclass(frozen=True, slots=True)
class CP(CanonicalPolyadic):
    """CP with one depthwise stage a spatial axis, rank `(R,)`.

    `auto` leaves large layers to `cp3`: next to so many channels its larger depthwise stage costs nothing,
    and its error at a rank is the smaller one.
    """

    name: ClassVar[str] = "cp"
    most_weights: ClassVar[int | None] = 600_000

    def steps(self, spec: LayerSpec) -> tuple[SpatialStep, ...]:
        """One an axis."""
        steps = spatial_steps(spec)
        return steps if len(steps) > 1 else (SpatialStep("depthwise", steps[0].axes),)
