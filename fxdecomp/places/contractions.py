"""Products of two values of a graph, with a letter for each of their axes.

Of `matmul` `ABtc, ABcs -> ABts`, the first axes alike or of size 1 and repeated; of `einsum` what is written,
such as `bthd, bshd -> bhts`; of attention in one node `ABtc, ABsc -> ABts`, then `ABts, ABsj -> ABtj`.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass

from torch import Tensor
from torch.fx import Node

from fxdecomp.places.moving import compact
from fxdecomp.sites.base import shape_of

ATTENTION = "scaled_dot_product_attention"
"""The operation of attention in one node."""

_MATRICES = frozenset(("matmul", "bmm"))
_EQUATION = re.compile(r"([a-zA-Z]+),([a-zA-Z]+)->([a-zA-Z]+)")


@dataclass(frozen=True, slots=True)
class Contraction:
    """A product of two values, summed over the letters that the result lacks."""

    left: str
    right: str
    result: str

    @property
    def summed(self) -> str:
        """The letters over which is summed."""
        return "".join(each for each in self.left if each in self.right and each not in self.result)

    @property
    def common(self) -> str:
        """The letters that both values and the result have."""
        return "".join(each for each in self.left if each in self.right and each in self.result)

    def own(self, side: str) -> str:
        """The letters that one side has alone."""
        other = self.right if side == self.left else self.left
        return "".join(each for each in side if each not in other)


def is_product(name: str) -> bool:
    """Whether an operation may be a product of two values."""
    return name in _MATRICES or name in (ATTENTION, "einsum")


def contraction_of(name: str, node: Node) -> tuple[Node, Node, Contraction] | None:
    """The two values that a node multiplies, and how; None where it does something else."""
    if name == "einsum":
        equation, *given = node.args
        given = list(given[0]) if len(given) == 1 and isinstance(given[0], list | tuple) else given
        match = _EQUATION.fullmatch(str(equation).replace(" ", ""))
        letters = Contraction(*match.groups()) if match else None
        single = match is not None and all(len(set(each)) == len(each) for each in match.groups())
    elif name in _MATRICES and not node.kwargs:
        given = list(node.args)
        ndims = [len(shape_of(each) or ()) if isinstance(each, Node) else 0 for each in given]
        letters, single = _matrices(max(ndims, default=0) - 2), min(ndims, default=0) >= 2
    else:
        return None
    if not single or letters is None or len(given) != 2:
        return None
    left, right = given
    return (left, right, letters) if isinstance(left, Node) and isinstance(right, Node) else None


def scores_of(ndim: int) -> Contraction:
    """Of queries and keys in a node of attention."""
    lead = string.ascii_uppercase[: ndim - 2]
    return Contraction(f"{lead}tc", f"{lead}sc", f"{lead}ts")


def mixed_of(ndim: int) -> Contraction:
    """Of probabilities and values in a node of attention."""
    lead = string.ascii_uppercase[: ndim - 2]
    return Contraction(f"{lead}ts", f"{lead}sj", f"{lead}tj")


def _matrices(axes: int) -> Contraction:
    lead = string.ascii_uppercase[: max(axes, 0)]
    return Contraction(f"{lead}tc", f"{lead}cs", f"{lead}ts")


def with_axes(values: Tensor, letters: str) -> Tensor:
    """A value with an axis for each letter, those of size 1 that were left out in front."""
    return values.reshape((1,) * (len(letters) - values.ndim) + tuple(values.shape))


def is_alike(values: Tensor, letters: str, along: str) -> bool:
    """Whether a value is the same along some axes."""
    values = compact(values)
    return all(
        bool((values == values.narrow(letters.index(each), 0, 1)).all()) for each in along if each in letters
    )


def picked(values: Tensor, letters: str, wanted: str) -> Tensor:
    """The first of a value along all axes but those wanted, in this order; missing ones are of size 1."""
    for each in letters:
        if each not in wanted:
            values = values.narrow(letters.index(each), 0, 1)
    order = [letters.index(each) for each in wanted if each in letters]
    turned = values.permute(*order, *(index for index in range(values.ndim) if index not in order))
    turned = turned.reshape(turned.shape[: len(order)])
    for place, each in enumerate(wanted):
        if each not in letters:
            turned = turned.unsqueeze(place)
    return turned


def rows_of(left: Tensor, right: Tensor, contraction: Contraction) -> tuple[Tensor, Tensor]:
    """What is multiplied with what, `[products, summed]` each."""
    wanted = contraction.common + contraction.summed
    one, other = picked(left, contraction.left, wanted), picked(right, contraction.right, wanted)
    shape = [max(pair) for pair in zip(one.shape, other.shape, strict=True)]
    return one.expand(shape).reshape(-1, shape[-1]), other.expand(shape).reshape(-1, shape[-1])
