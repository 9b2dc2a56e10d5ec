"""The last stage of a chain fitted to what a ReLU behind it lets through.

    minimise  E || r(y) - r(M v + b) ||^2,    r(y) = max(y, 0),  v = what the last stage sees

Where the original output is negative, any negative value is as good. With an auxiliary response a the problem
splits: `||r(y) - r(a)||^2 + lambda ||a - M v - b||^2` is least in a element by element, and in M and b by
least squares; lambda grows from round to round. The best of all rounds on held-out samples is taken, if it is
better than what was there.

Source: Zhang et al. 2015, arXiv 1505.06798, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from fxdecomp.chains import Chain
from fxdecomp.fitting.refitting import GAIN
from fxdecomp.fitting.tails import basis_of
from fxdecomp.linalg.cholesky import cholesky

_PENALTIES = (0.01, 0.1, 1.0)
_ROUNDS = 10
"""Of each penalty at most; a round that gains nothing worth having is its last."""


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Rows of input patches with the outputs that are wanted.

    Attributes:
        inputs: z, `[n, d]`, as the parts that they came in: put together they take the room twice.
        outputs: y, `[n, t]`, before the ReLU.
    """

    inputs: Sequence[Float[Tensor, "_ d"]]
    outputs: Float[Tensor, "n t"]

    def through(self, basis: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        """`B z`."""
        return torch.cat([part @ basis.T for part in self.inputs])


def rectify(fit: Samples, held: Samples, chain: Chain) -> Chain:
    """The chain with the last stage and bias that fit best behind a ReLU; the given one where none is better.

    Args:
        fit: Samples to fit to.
        held: Samples to judge by.
        chain: The chain of one group as it is, its bias in float64.
    """
    last = chain.weights[-1]
    assert chain.bias is not None  # made so by the caller; narrows the type
    basis = basis_of(chain.form.stages, chain.weights, len(chain.weights) - 1).flatten(1)
    seen, judged = fit.through(basis), held.through(basis)
    wanted, held_wanted = fit.outputs.relu(), held.outputs.relu()
    M, b = last.flatten(1), chain.bias.to(last.dtype)

    def cost(M: Tensor, b: Tensor) -> float:
        return float((held_wanted - (judged @ M.T + b).relu()).square().sum(dtype=torch.float64))

    best, least = chain, cost(M, b) * (1 - GAIN)
    ones = seen.new_ones(len(seen), 1)
    design = torch.cat((seen, ones), dim=1).double()
    lower = cholesky(design.T @ design)
    for penalty in _PENALTIES:
        before = math.inf
        for _ in range(_ROUNDS):
            target = _auxiliary(seen @ M.T + b, wanted, penalty)
            solution = torch.cholesky_solve(design.T @ target.double(), lower).to(last.dtype)
            M, b = solution[:-1].T, solution[-1]
            found = cost(M, b)
            if found < least:
                weights = (*chain.weights[:-1], M.reshape(last.shape).contiguous())
                best, least = replace(chain, weights=weights, bias=b.double()), found
            if not found < before * (1 - GAIN):
                break
            before = found
    return best


def _auxiliary(
    response: Float[Tensor, "n t"], wanted: Float[Tensor, "n t"], penalty: float
) -> Float[Tensor, "n t"]:
    """The least of `(wanted - r(a))^2 + penalty (a - response)^2` in a, element by element."""
    above = ((penalty * response + wanted) / (penalty + 1)).clamp_min(0)
    below = response.clamp_max(0)
    cost_above = (wanted - above).square() + penalty * (above - response).square()
    cost_below = wanted.square() + penalty * (below - response).square()
    return torch.where(cost_above < cost_below, above, below)
