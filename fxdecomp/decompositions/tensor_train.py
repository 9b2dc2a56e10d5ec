"""Tensor train: pointwise, one stage an axis of the kernel, pointwise, each with ranks of its own.

    W[t, s, y, x] ~ sum_{a, b, c}  P[a, s] Y[b, a, y] X[c, b, x] Q[t, c]

    x --pointwise_in: S -> a--> --vertical: a -> b--> --horizontal: b -> c--> --pointwise_out: c -> T--> y

Each rank truncates one SVD, from the inputs to the outputs. Source: Oseledets 2011, SIAM J. Sci. Comput. 33,
algorithm 1; the error is at most sqrt(number of ranks) times the best one (corollary 2.4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, final

import torch
from torch import Tensor

from fxdecomp.chains import Chain
from fxdecomp.decompositions.base import Decomposition
from fxdecomp.decompositions.estimating import is_calibrated, relative_tails, tail_error
from fxdecomp.decompositions.problem import Problem, Spectrum
from fxdecomp.decompositions.rank_grid import Rank, RankGrid
from fxdecomp.decompositions.spatial import spatial_stages, spatial_steps, step_kernel
from fxdecomp.layers import LayerSpec, StageSpec
from fxdecomp.linalg.factoring import left_svd

_TRAIN_ERRORS = tuple(0.9**i for i in range(3, 43, 4))
"""The error of each truncation that ranks are considered for."""


@final
@dataclass(frozen=True, slots=True)
class TensorTrain(Decomposition):
    """Tensor train, one rank between each two stages, from the input to the output."""

    name: ClassVar[str] = "tensor_train"
    rise: ClassVar[float] = 0.01
    alternation_gain: ClassVar[float] = 1.4

    def refusal(self, spec: LayerSpec) -> str | None:
        """Any convolution will do."""
        return None if spec.ndim else "tensor_train takes convolutions; use svd for a Linear"

    def rank_limits(self, spec: LayerSpec) -> tuple[int, ...]:
        """The ranks of full matrices `[(in, axes so far), (out, axes to come)]`."""
        before, after = spec.in_channels, spec.out_channels * math.prod(spec.kernel)
        limits = [min(before, after)]
        for step in spatial_steps(spec):
            taps = math.prod(step_kernel(spec, step))
            before, after = before * taps, after // taps
            limits.append(min(before, after))
        return tuple(limits)

    def rank_channels(self, spec: LayerSpec) -> tuple[int, ...]:
        """Input channels first, output channels last, the smaller of the two between."""
        between = (min(spec.in_channels, spec.out_channels),) * (len(spatial_steps(spec)) - 1)
        return (spec.in_channels, *between, spec.out_channels)

    def stage_specs(self, spec: LayerSpec, rank: tuple[int, ...]) -> tuple[StageSpec, ...]:
        """Pointwise, one stage a step, pointwise."""
        return (
            StageSpec("pointwise_in", spec.pointwise(spec.in_channels, rank[0], at_output=False)),
            *spatial_stages(spec, spatial_steps(spec), rank),
            StageSpec("pointwise_out", spec.pointwise(rank[-1], spec.out_channels, at_output=True)),
        )

    def spectra(self, problem: Problem) -> tuple[Spectrum, ...]:
        """The singular values of `[(in, axes so far), (out, axes to come)]`, one matrix a rank."""
        modes = [1]
        spectra = [problem.spectrum(*modes)]
        for step in spatial_steps(problem.spec):
            modes += [2 + axis for axis in step.axes]
            spectra.append(problem.spectrum(*modes))
        return tuple(spectra)

    def factors(self, problem: Problem, rank: tuple[int, ...]) -> tuple[Tensor, ...]:
        """The kernels of the stages. Cost: one SVD a rank, the first the dearest and shared."""
        spec = problem.spec
        steps = spatial_steps(spec)
        axes = [2 + axis for step in steps for axis in step.axes]
        ones = (1,) * spec.ndim
        basis = problem.leading(rank[0], 1)
        rest = basis.T @ problem.weight.permute(1, *axes, 0).flatten(1)
        stages = [basis.T.reshape(rank[0], spec.in_channels, *ones)]
        for step, before, after in zip(steps, rank[:-1], rank[1:], strict=True):
            kernel = step_kernel(spec, step)
            rows = rest.reshape(before * math.prod(kernel), -1)
            basis = left_svd(rows)[0][:, :after]
            rest = basis.T @ rows
            short = after - basis.shape[1]
            if short > 0:
                basis = torch.nn.functional.pad(basis, (0, short))
                rest = torch.nn.functional.pad(rest, (0, 0, 0, short))
            stages.append(basis.T.reshape(after, before, *kernel))
        return (*stages, rest.T.reshape(spec.out_channels, rank[-1], *ones))

    def _fitted(self, problems: Sequence[Problem], rank: Rank) -> float:
        """The output error behind the truncations, once the last stage is fitted."""
        form = self.form(problems[0].spec, rank)
        return tail_error(problems, (Chain(form, self.factors(each, rank)) for each in problems))

    def estimates(self, problems: Sequence[Problem], grid: RankGrid) -> dict[Rank, float]:
        """Of ranks whose truncations cost about the same error each: at most the sum of the tails.

        The bound is Oseledets' theorem 2.2. With calibration the last stage is fitted behind the others.
        """
        by_mode = zip(*(self.spectra(problem) for problem in problems), strict=True)
        tails = [relative_tails([s.singular_values for s in spectra]) for spectra in by_mode]
        limits = self.rank_limits(problems[0].spec)
        errors: dict[Rank, float] = {}
        for threshold in _TRAIN_ERRORS:
            rank = tuple(
                min(grid.aligned(int((tail > threshold).sum()), limit), limit)
                for tail, limit in zip(tails, limits, strict=True)
            )
            if min(rank) < 1 or rank in errors:
                continue
            if is_calibrated(problems):
                errors[rank] = problems[0].once(f"{self.name} {rank}", partial(self._fitted, problems, rank))
            else:
                parts = zip(tails, rank, strict=True)
                errors[rank] = min(sum(float(tail[min(r, len(tail) - 1)]) for tail, r in parts), 1.0)
        return errors
