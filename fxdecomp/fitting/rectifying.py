"""The last stage of a chain fitted to what a ReLU behind it lets through.

    minimise  E || r(y) - r(M v + b) ||^2,    r(y) = max(y, 0),  v = what the last stage sees

Where the original output is negative, any negative value is as good. With an auxiliary response a the problem
splits: `||r(y) - r(a)||^2 + lambda ||a - x||^2`, `x = M v + b`, is least in a element by element,

    a = x + (r(y) - x) / (1 + lambda)    where x > -r(y) (sqrt(1 + 1 / lambda) - 1),    a = x elsewhere

and in M and b by least squares: they move by what fits `a - x`. lambda grows from round to round. The best of
all rounds on held-out samples is taken, if it is better than what was there.

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
from fxdecomp.linalg.factoring import gram

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
    design, judged = _with_ones(fit.through(basis)), _with_ones(held.through(basis))
    wanted, held_wanted = fit.outputs.relu(), held.outputs.relu()
    solution = torch.cat((last.flatten(1).T.double(), chain.bias[None]))  # M and b

    def cost() -> float:
        missed = held_wanted - (judged @ solution.to(judged.dtype)).relu_()
        return float(torch.linalg.vector_norm(missed, dtype=torch.float64)) ** 2

    best, least = chain, cost() * (1 - GAIN)
    lower = cholesky(gram(design.T))
    for penalty in _PENALTIES:
        before = math.inf
        for _ in range(_ROUNDS):
            moved = to_auxiliary(design @ solution.to(design.dtype), wanted, penalty)
            solution = solution + torch.cholesky_solve((design.T @ moved).double(), lower)
            found = cost()
            if found < least:
                weight = solution[:-1].T.reshape(last.shape).to(last.dtype).contiguous()
                best = replace(chain, weights=(*chain.weights[:-1], weight), bias=solution[-1].clone())
                least = found
            if not found < before * (1 - GAIN):
                break
            before = found
    return best


def to_auxiliary(
    response: Float[Tensor, "n t"], wanted: Float[Tensor, "n t"], penalty: float
) -> Float[Tensor, "n t"]:
    """`a - x` for the a in which `(w - r(a))^2 + lambda (a - x)^2` is least, element by element.

    Args:
        response: x; its room is used, as new pages would take as long as the arithmetic.
        wanted: w, from 0 on.
        penalty: lambda.
    """
    reach = math.sqrt(1 + 1 / penalty) - 1
    moves = torch.add(response, wanted, alpha=reach) > 0
    return torch.sub(wanted, response, out=response).div_(1 + penalty).mul_(moves)


def _with_ones(seen: Float[Tensor, "n m"]) -> Float[Tensor, "n m+1"]:
    return torch.cat((seen, seen.new_ones(len(seen), 1)), dim=1)
