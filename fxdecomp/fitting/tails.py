"""The last one or two stages of a chain in closed form, and the error that they reach.

Let B be the composition of the stages before the tail, `C = B Sigma B^T = L L^T`, `K = W Sigma B^T`. A single
last stage is `K C^-1`; a dense stage with a pointwise one behind it is the reduced-rank regression: U the
leading eigenvectors of `K C^-1 K^T`, the stage before it `U^T K C^-1`. Of the output's variance
`tr W Sigma W^T` the tail keeps the squared norm of its *spread* `L^-1 K^T`. Where the heads of smaller ranks
are the leading channels of the largest one, so are the rows of the spread: one factorisation does for all.

Source: Izenman 1975, J. Multivariate Anal. 5 (reduced-rank regression).
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from fxdecomp.chains import Chain, Form, composed
from fxdecomp.fitting.metric import Metric
from fxdecomp.layers import StageSpec
from fxdecomp.linalg.cholesky import cholesky
from fxdecomp.linalg.factoring import evened


def tail_length(form: Form) -> int:
    """2 where a pointwise stage follows a dense one, else 1."""
    if len(form.stages) == 1:
        return 1
    before, last = (stage.spec for stage in form.stages[-2:])
    return 2 if math.prod(last.kernel) == 1 and last.groups == 1 and before.groups == 1 else 1


def basis_of(
    stages: tuple[StageSpec, ...], weights: tuple[Tensor, ...], index: int
) -> Float[Tensor, "rows in *kernel"]:
    """What stage `index` looks at, as a kernel: `[in * taps, S, *kernel so far]`."""
    spec = stages[index].spec
    count = spec.in_channels * math.prod(spec.kernel)
    identity = torch.eye(count, dtype=weights[0].dtype, device=weights[0].device)
    identity = identity.reshape(count, spec.in_channels, *spec.kernel)
    if index == 0:
        return identity
    return torch.einsum("om...,mi...->oi...", identity, composed(stages[:index], weights[:index]))


def tail_equations(
    metric: Metric, chain: Chain, index: int
) -> tuple[Float[Tensor, "rows rows"], Float[Tensor, "out rows"]]:
    """The lower factor of `C`, and `K`, of what stage `index` of a chain of one group sees."""
    stages, weights = chain.form.stages, chain.weights
    seen = seen_by(metric.covariance, stages, weights, index)
    C, K = seen_by(seen.T, stages, weights, index), metric.weight.flatten(1) @ seen.T
    return cholesky(C, dtype=torch.float64), K.double()


def seen_by(
    matrix: Float[Tensor, "d n"], stages: tuple[StageSpec, ...], weights: tuple[Tensor, ...], index: int
) -> Float[Tensor, "rows n"]:
    """`B M`, of what stage `index` sees. Cost: `rows d n`; for the first two stages see below."""
    if index == 0:  # B is the identity, however large
        return matrix
    first, taps = stages[0].spec, math.prod(stages[index].spec.kernel)
    if index == 1 and math.prod(first.kernel) == 1 and first.in_channels * taps == len(matrix):
        channels = weights[0].flatten(1)  # B is this kron the identity over the taps
        return (channels @ matrix.reshape(first.in_channels, -1)).reshape(-1, matrix.shape[1])
    return basis_of(stages, weights, index).flatten(1) @ matrix


def tail_spread(metric: Metric, chain: Chain, index: int) -> Float[Tensor, "rows out"]:
    """`L^-1 K^T` in the unit of `metric.total`; the weights of the tail itself do not matter.

    Args:
        metric: Of one group.
        chain: Of that group.
        index: The first stage of the tail.

    Cost: `rows d^2`, d the size of an input patch, rows what the first stage of the tail sees.
    """
    lower, K = tail_equations(metric, chain, index)
    spread: Tensor = torch.linalg.solve_triangular(lower, K.T, upper=False)
    return spread


def leading_outputs(spread: Float[Tensor, "out rows"], rank: int) -> Float[Tensor, "out r"]:
    """The leading left singular vectors of a spread, `min(rank, *its shape)` of them."""
    if spread.shape[0] <= spread.shape[1]:
        leading: Tensor = torch.linalg.eigh(spread @ spread.T).eigenvectors.flip(1)[:, :rank]
        return leading
    orthonormal, triangle = torch.linalg.qr(spread)
    basis: Tensor = orthonormal @ leading_outputs(triangle, rank)
    return basis


def with_tail(metric: Metric, chain: Chain, tail: int) -> Chain:
    """The chain with its last one or two stages in closed form."""
    head = chain.weights[: len(chain.weights) - tail]
    lower, K = tail_equations(metric, chain, len(head))
    regression = torch.cholesky_solve(K.T, lower).T
    last = chain.weights[-1]
    if tail == 1:
        return replace(chain, weights=(*head, regression.reshape(last.shape).to(last.dtype)))
    rank = chain.form.stages[-2].spec.out_channels
    spread = regression @ lower
    U = leading_outputs(spread, rank)
    outer, inner = evened(U, U.T @ regression, floor=1e-8)
    missing = rank - len(inner)
    inner = torch.nn.functional.pad(inner, (0, 0, 0, missing)).reshape(chain.weights[-2].shape)
    outer = torch.nn.functional.pad(outer, (0, missing)).reshape(last.shape)
    return replace(chain, weights=(*head, inner.to(last.dtype), outer.to(last.dtype)))
