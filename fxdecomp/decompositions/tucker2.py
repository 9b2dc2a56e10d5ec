"""Tucker-2 decomposition: a small dense kernel between two pointwise stages.

    W[t, s, y, x] ~ sum_{p, q}  U[t, p] G[p, q, y, x] V[s, q]

    x --pointwise_in: S -> Q--> --core: k x k, Q -> P--> --pointwise_out: P -> T--> y

The stride and the padding stay with the core. Source: Kim et al. 2016, arXiv 1511.06530, section 3; the
alternation is the higher-order orthogonal iteration of De Lathauwer et al. 2000, with one step of subspace
iteration from the last basis in place of each SVD; a round that raises the error is thrown away.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from fxdecomp.decompositions.base import Decomposition
from fxdecomp.decompositions.estimating import is_calibrated, lost_share, nested_spread
from fxdecomp.decompositions.problem import Problem, Spectrum
from fxdecomp.decompositions.rank_grid import Rank, RankGrid
from fxdecomp.layers import LayerSpec, StageSpec
from fxdecomp.linalg.range_finder import filtered

_DEGREE = 2


@final
@dataclass(frozen=True, slots=True)
class Tucker2(Decomposition):
    """Tucker-2, rank `(output rank P, input rank Q)`.

    Attributes:
        tolerance: The alternation stops when a round lowers the error by less than this share of it.
        rounds: The most rounds that it takes.
    """

    name: ClassVar[str] = "tucker2"
    rise: ClassVar[float] = 0.01
    alternation_gain: ClassVar[float] = 1.05
    tolerance: float = 2e-4
    rounds: int = 30

    def refusal(self, spec: LayerSpec) -> str | None:
        """Any convolution will do."""
        return None if spec.ndim else "tucker2 takes convolutions; use svd for a Linear"

    def rank_limits(self, spec: LayerSpec) -> tuple[int, ...]:
        """The ranks of full unfoldings."""
        taps = math.prod(spec.kernel)
        return min(spec.out_channels, spec.in_channels * taps), min(
            spec.in_channels, spec.out_channels * taps
        )

    def rank_channels(self, spec: LayerSpec) -> tuple[int, ...]:
        """Output channels, input channels."""
        return spec.out_channels, spec.in_channels

    def stage_specs(self, spec: LayerSpec, rank: tuple[int, ...]) -> tuple[StageSpec, ...]:
        """Pointwise, core, pointwise."""
        out_rank, in_rank = rank
        return (
            StageSpec("pointwise_in", spec.pointwise(spec.in_channels, in_rank, at_output=False)),
            StageSpec("core", replace(spec, in_channels=in_rank, out_channels=out_rank)),
            StageSpec("pointwise_out", spec.pointwise(out_rank, spec.out_channels, at_output=True)),
        )

    def spectra(self, problem: Problem) -> tuple[Spectrum, ...]:
        """The singular values of the output and of the input unfolding."""
        return problem.spectrum(0), problem.spectrum(1)

    def factors(self, problem: Problem, rank: tuple[int, ...]) -> tuple[Tensor, ...]:
        """`V^T`, the core and `U`. Cost: two SVDs shared by all ranks, a few products a round."""
        tensor = problem.weight.flatten(2)
        U = problem.leading(rank[0], 0)
        V = problem.leading(rank[1], 1)
        if problem.moments is None and rank != self.rank_limits(problem.spec):
            U, V = self._alternate(tensor, U, V)
        core = torch.einsum("tsk,tp,sq->pqk", tensor, U, V)
        ones = (1,) * problem.spec.ndim
        return (
            V.T.reshape(*V.T.shape, *ones),
            core.reshape(*rank, *problem.spec.kernel),
            U.reshape(*U.shape, *ones),
        )

    def estimates(self, problems: Sequence[Problem], grid: RankGrid) -> dict[Rank, float]:
        """Of all pairs of ranks: the error of the truncated higher-order SVD, which alternation lowers.

        `e^2(p, q) = 1 - sum_{i <= p, j <= q} ||G_ij||^2 / ||W||^2`, G the full core. With calibration the
        core and the last stage are fitted behind the leading input channels: the leading eigenvalues of
        `K C^-1 K^T` give all output ranks at once (reduced-rank regression, see `fitting.tails`).
        """
        limits = self.rank_limits(problems[0].spec)
        outs, ins = ([*grid.along(limit, grid.paired), limit] for limit in limits)
        if is_calibrated(problems):
            errors = self._output_errors(problems, outs, ins)
        else:
            kept, total = _core_energies(problems)
            errors = {
                (p, q): 1.0 - float(kept[p - 1, q - 1]) / total for p, q in itertools.product(outs, ins)
            }
        del errors[limits]
        return errors

    def _output_errors(
        self, problems: Sequence[Problem], outs: Sequence[int], ins: Sequence[int]
    ) -> dict[Rank, float]:
        kept = dict.fromkeys(itertools.product(outs, ins), 0.0)
        whole = 0.0
        for problem in problems:
            spread, total, taps = self._spread(problem)
            whole += total
            for q in ins:
                rows = spread[: q * taps]
                values = torch.linalg.eigvalsh(rows.T @ rows).flip(0).cumsum(0)
                for p in outs:
                    kept[p, q] += float(values[p - 1])
        return {rank: lost_share(share, whole) for rank, share in kept.items()}

    def _spread(self, problem: Problem) -> tuple[Tensor, float, int]:
        """Behind all input channels, the leading ones first."""
        rank = self.rank_limits(problem.spec)
        return problem.once("tucker2", lambda: nested_spread(self, problem, rank))

    def _alternate(
        self, tensor: Float[Tensor, "t s k"], U: Float[Tensor, "t p"], V: Float[Tensor, "s q"]
    ) -> tuple[Float[Tensor, "t p"], Float[Tensor, "s q"]]:
        unit = tensor / tensor.abs().max().clamp_min(torch.finfo(tensor.dtype).tiny)
        flipped = unit.transpose(0, 1).contiguous()
        whole = float(unit.square().sum(dtype=torch.float64))
        best, lost = (U, V), math.inf
        for _ in range(self.rounds):
            V = _improved(_projected(unit, U), V)
            rows = _projected(flipped, V)
            before, lost = lost, whole - float((rows.T @ U).square().sum(dtype=torch.float64))
            if not lost < before:
                break
            best = U, V
            if before - lost <= 2 * self.tolerance * lost:
                break
            U = _improved(rows, U)
        return best


def _projected(tensor: Float[Tensor, "a b k"], basis: Float[Tensor, "a p"]) -> Float[Tensor, "b columns"]:
    """The kernel projected on one side, unfolded along the other."""
    projected = (basis.T @ tensor.flatten(1)).reshape(basis.shape[1], *tensor.shape[1:])
    return projected.transpose(0, 1).flatten(1)


def _improved(rows: Float[Tensor, "b columns"], basis: Float[Tensor, "b r"]) -> Float[Tensor, "b r"]:
    """A step towards the leading left vectors of a matrix; a full SVD would gain little more a round."""

    def apply(block: Tensor) -> Tensor:
        return rows @ (rows.T @ block)

    return filtered(apply, basis, apply(basis), _DEGREE)


def _core_energies(problems: Sequence[Problem]) -> tuple[Float[Tensor, "t s"], float]:
    """Summed squares of the leading blocks of the rotated kernels, and of the whole, over all groups."""
    squares = []
    for problem in problems:
        U, V = problem.left_svd(0)[0], problem.left_svd(1)[0]
        core = torch.einsum("tsk,tp,sq->pqk", problem.weight.flatten(2), U, V)
        squares.append(core.double().square().sum(2).cumsum(0).cumsum(1))
    kept = torch.stack(squares).sum(0)
    return kept, max(float(kept[-1, -1]), 1e-300)
