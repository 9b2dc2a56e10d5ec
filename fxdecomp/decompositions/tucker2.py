"""Tucker-2 decomposition: a small dense kernel between two pointwise stages.

    W[t, s, y, x] ~ sum_{p, q}  U[t, p] G[p, q, y, x] V[s, q]

    x --pointwise_in: S -> Q--> --core: k x k, Q -> P--> --pointwise_out: P -> T--> y

The stride and the padding stay with the core. Source: Kim et al. 2016, arXiv 1511.06530, section 3; the
alternation is the higher-order orthogonal iteration of De Lathauwer et al. 2000, which never raises the
error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from fxdecomp.decompositions.base import Decomposition
from fxdecomp.decompositions.factoring import left_svd
from fxdecomp.decompositions.problem import Problem, Spectrum
from fxdecomp.layers import LayerSpec, StageSpec


@final
@dataclass(frozen=True, slots=True)
class Tucker2(Decomposition):
    """Tucker-2, rank `(output rank P, input rank Q)`.

    Attributes:
        tolerance: The alternation stops when a round raises the kept norm by less than this share of the
        weight's. rounds: The most rounds that it takes.
    """

    name: ClassVar[str] = "tucker2"
    tolerance: float = 1e-5
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
        """`V^T`, the core and `U`. Cost: two SVDs shared by all ranks, and small ones."""
        tensor = problem.weight.flatten(2)
        U = problem.left_svd(0)[0][:, : rank[0]]
        V = problem.left_svd(1)[0][:, : rank[1]]
        if problem.moments is None and rank != self.rank_limits(problem.spec):
            U, V = self._alternate(tensor, U, V)
        core = torch.einsum("tsk,tp,sq->pqk", tensor, U, V)
        ones = (1,) * problem.spec.ndim
        return (
            V.T.reshape(*V.T.shape, *ones),
            core.reshape(*rank, *problem.spec.kernel),
            U.reshape(*U.shape, *ones),
        )

    def _alternate(
        self, tensor: Float[Tensor, "t s k"], U: Float[Tensor, "t p"], V: Float[Tensor, "s q"]
    ) -> tuple[Float[Tensor, "t p"], Float[Tensor, "s q"]]:
        whole = torch.linalg.vector_norm(tensor)
        kept = torch.zeros_like(whole)
        for _ in range(self.rounds):
            rows = torch.einsum("tsk,tp->spk", tensor, U).flatten(1)
            V = _leading(rows, V.shape[1])
            rows = torch.einsum("tsk,sq->tqk", tensor, V).flatten(1)
            U = _leading(rows, U.shape[1])
            before, kept = kept, torch.linalg.vector_norm(U.T @ rows)
            if kept - before <= self.tolerance * whole:
                break
        return U, V


def _leading(matrix: Float[Tensor, "rows columns"], rank: int) -> Float[Tensor, "rows rank"]:
    """Leading left vectors, completed to `rank` orthonormal columns where the matrix has fewer."""
    basis = left_svd(matrix)[0][:, :rank]
    missing = rank - basis.shape[1]
    if missing <= 0:
        return basis
    completed, _ = torch.linalg.qr(torch.cat((basis, torch.eye(matrix.shape[0]).to(basis)), dim=1))
    leading: Tensor = completed[:, :rank]
    return leading
