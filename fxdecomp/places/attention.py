"""The way of layers' outputs through a graph, up to the products of attention and the layers behind these.

Every channel has a number, through all of the layers. Nodes that move elements about move these numbers; a
product with a value of another origin is a sum over places, which leaves each channel to itself; a product of
two that are followed is one of queries and keys, summed over the channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxdecomp.places.contractions import (
    ATTENTION,
    Contraction,
    contraction_of,
    is_alike,
    mixed_of,
    picked,
    rows_of,
    scores_of,
    with_axes,
)
from fxdecomp.places.moving import Moves, is_move
from fxdecomp.places.operations import operation_of
from fxdecomp.sites import Site
from fxdecomp.sites.base import shape_of
from fxdecomp.sites.constants import writes

_SCALED = frozenset(("mul", "imul", "div", "truediv", "itruediv"))
_READS = frozenset(("size", "sym_size", "dim"))
_READ = frozenset(("shape", "ndim", "dtype", "device", "is_cuda", "requires_grad"))
_OPERANDS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
_UP_TO_SOFTMAX = _SCALED | frozenset(
    ("add", "iadd", "sub", "isub", "where", "masked_fill", "contiguous", "clone", "dropout", "to", "float")
)
"""What leaves an equal sum to all scores of a query an equal sum, where other factors are numbers."""


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """What is multiplied with what, `[products, size]` each.

    Attributes:
        left: Channels on the one side.
        right: Those that they meet on the other.
        ignores_mean: Whether what the right side has in common at all places changes nothing, as softmax
            follows.
    """

    left: Tensor
    right: Tensor
    ignores_mean: bool


@dataclass(slots=True, eq=False)
class Met:
    """What the outputs of layers meet.

    Attributes:
        values: The numbers of the channels at every node on the way.
        products: Products of queries and keys.
        mixed: The channels of the heads that a product mixes over places, `[heads, size]`.
        sizes: Nodes that read sizes, with the value whose sizes they are.
        factors: Values that are multiplied by others, with these.
        readers: Layers at the end, with the channels that are their inputs.
    """

    values: dict[Node, Any] = field(default_factory=dict)
    products: dict[Node, Product] = field(default_factory=dict)
    mixed: dict[Node, Tensor] = field(default_factory=dict)
    sizes: dict[Node, Node] = field(default_factory=dict)
    factors: list[tuple[Node, Node]] = field(default_factory=list)
    readers: dict[Node, Tensor] = field(default_factory=dict)


class Way:
    """One walk. Cost: that of moving as many numbers as the layers' outputs have elements."""

    def __init__(self, gm: GraphModule, sites: Mapping[Node, Site], moves: Moves) -> None:
        self._gm, self._sites, self._moves = gm, sites, moves
        self.met = Met()

    def follow(
        self, starts: Mapping[Node, Tensor], args: Mapping[Node, tuple[Any, ...]] | None = None
    ) -> Site | str:
        """Go to the end; empty where that was reached, another layer that belongs to these, or why not.

        Args:
            starts: The outputs of layers, as the numbers of their channels.
            args: Arguments of nodes that are to be taken for their own.

        Raises:
            ValueError: A move cannot be run.
        """
        values = self.met.values
        for node in self._gm.graph.nodes:
            given = [source for source in node.all_input_nodes if source in values]
            if node in starts:
                if given:
                    return f"{self._sites[node].name} reads outputs that it is joined with"
                values[node] = starts[node]
            elif given and (found := self._step(node, given, (args or {}).get(node))):
                return found
        return ""

    def _step(self, node: Node, given: list[Node], args: tuple[Any, ...] | None) -> Site | str:
        name, values, found = operation_of(self._gm, node), self.met.values, ""
        if node.op == "output":
            found = f"{given[0].name} is an output of the network"
        elif node in self._sites:
            found = self._reader(node, given)
        elif name in _READS or (name == "getattr" and node.args[1] in _READ):
            self.met.sizes[node] = given[0]
        elif name == ATTENTION:
            return self._attention(node, given)
        elif contraction := contraction_of(name, node):
            return self._product(node, *contraction)
        elif len(given) == 1 and is_move(node, name) and not writes(node):
            values[node] = self._moves.run(node, values, args)
        elif len(given) == 1 and name in _SCALED and self._is_scale(node, name, given[0]):
            values[node] = values[given[0]]
        else:
            found = f"{node.name} ({name or node.op}) reads them, through which they are not followed"
        return found

    def _is_scale(self, node: Node, name: str, source: Node) -> bool:
        """Whether a node multiplies a followed value by another, which is looked at when heads are known."""
        others = [each for each in node.all_input_nodes if each is not source]
        plain = not node.kwargs and (node.args[0] is source or name in ("mul", "imul"))
        if not plain or shape_of(node) != shape_of(source) or shape_of(source) is None:
            return False
        self.met.factors += [(source, each) for each in others]
        return True

    def _reader(self, node: Node, given: Sequence[Node]) -> str:
        """A layer that reads what is followed, every input one channel."""
        site, source = self._sites[node], given[0]
        channels = self.met.values[source]
        if len(site.calls) > 1:
            return f"{site.name}, which reads them, is applied at {len(site.calls)} places"
        if len(given) > 1 or site.calls[0].source is not source or not isinstance(channels, Tensor):
            return f"{site.name} reads them besides its input"
        if site.spec.groups > 1 or site.spec.recurrence is not None or not site.spec.is_pointwise:
            return f"{site.name} ({site.spec}), which reads them, does more than mix channels"
        if not bool(site.weight.isfinite().all()):
            return f"the weight of {site.name}, which reads them, holds NaN or infinity"
        last = channels.movedim(channels.ndim - 1 - site.spec.ndim, -1)
        rows = last.reshape(-1, last.shape[-1])
        if not torch.equal(rows, rows[:1].expand_as(rows)):
            return f"{site.name} reads them along another axis"
        self.met.readers[node] = rows[0]
        return ""

    def _attention(self, node: Node, given: Sequence[Node]) -> Site | str:
        """A node that multiplies queries and keys, and mixes values."""
        named = operands_of(node)
        query, key, value = (named.get(each) for each in _OPERANDS[:3])
        parts = [each for each in (query, key, value) if isinstance(each, Node)]
        if len(parts) < 3 or not set(given) <= set(parts):
            return f"{node.name} is no attention of queries, keys and values alone"
        shapes = [self._shape(each) for each in parts]
        if any(len(shape) < 3 for shape in shapes):
            return f"{node.name} has operands of unknown shapes"
        repeats = shapes[0][-3] // shapes[1][-3] if named.get("enable_gqa") else 1
        ndim = max(map(len, shapes))
        if parts[0] in given or parts[1] in given:
            found = self._product(node, parts[0], parts[1], scores_of(ndim), repeats)
            if found:
                return found
        if parts[2] in given:
            mixed = mixed_of(ndim)
            channels = self._channels(parts[2], mixed.right, repeats)
            return self._mix(node, channels, mixed.right, mixed, {"t": shapes[0][-2]})
        return ""

    def _product(
        self, node: Node, left: Node, right: Node, contraction: Contraction, repeats: int = 1
    ) -> Site | str:
        """A product of two values, of which one or both are followed."""
        values = self.met.values
        known = [side for side, each in (("left", left), ("right", right)) if each in values]
        if any(not isinstance(values[each], Tensor) for each in (left, right) if each in values):
            return f"{node.name} reads them together"
        if len(contraction.summed) != 1:
            return f"{node.name} sums over {len(contraction.summed)} axes"
        if len(known) == 2:
            return self._multiplied(node, left, right, contraction, repeats)
        mine, other = (left, right) if known == ["left"] else (right, left)
        letters = contraction.left if known == ["left"] else contraction.right
        channels = self._channels(mine, letters)
        if is_alike(channels, letters, contraction.summed):
            others = contraction.right if known == ["left"] else contraction.left
            lengths = dict(zip(others[::-1], self._shape(other)[::-1], strict=False))
            return self._mix(node, channels, letters, contraction, lengths)
        partner = self._producer_of(other)
        return partner or f"{node.name} multiplies them with {other.name}, which is no single layer's output"

    def _multiplied(self, node: Node, left: Node, right: Node, contraction: Contraction, repeats: int) -> str:
        """Queries with keys: summed over the channels of a head, alike at all places."""
        queries = self._channels(left, contraction.left)
        keys = self._channels(right, contraction.right, repeats)
        sides = ((queries, contraction.left), (keys, contraction.right))
        if not all(is_alike(each, side, contraction.own(side)) for each, side in sides):
            return f"{node.name} multiplies them along an axis that is no head's"
        pair = rows_of(queries, keys, contraction)
        self.met.products[node] = Product(*pair, self._is_normalised(node, contraction))
        return ""

    def _mix(
        self,
        node: Node,
        channels: Tensor,
        letters: str,
        contraction: Contraction,
        lengths: Mapping[str, int],
    ) -> str:
        """A sum over places: every channel stays, at as many places as the other side has."""
        own = contraction.own(letters)
        if (
            len(own) != 1
            or own not in contraction.result
            or not is_alike(channels, letters, contraction.summed)
        ):
            return f"{node.name} multiplies them along an axis that is no head's"
        rows = picked(channels, letters, contraction.common + own)
        self.met.mixed[node] = rows.reshape(-1, rows.shape[-1])
        mixed = picked(channels, letters, contraction.result)
        sizes = [
            max(size, lengths.get(each, 1))
            for each, size in zip(contraction.result, mixed.shape, strict=True)
        ]
        self.met.values[node] = mixed.expand(sizes)
        return ""

    def _channels(self, node: Node, letters: str, repeats: int = 1) -> Tensor:
        """The channels that a value has, an axis for each letter; heads may be there several times."""
        found = with_axes(self.met.values[node], letters)
        return found.repeat_interleave(repeats, -3) if repeats > 1 else found

    def _is_normalised(self, node: Node, contraction: Contraction) -> bool:
        """Whether softmax over the places of the right side is all that sees scores."""
        name = operation_of(self._gm, node)
        if name == ATTENTION:
            return True
        if contraction.result[-1] not in contraction.own(contraction.right):
            return False
        waiting, ndim = [node], len(contraction.result)
        while waiting:
            source = waiting.pop()
            for user in source.users:
                name = operation_of(self._gm, user)
                others = [each for each in user.all_input_nodes if each is not source]
                divides = name not in ("mul", "imul") and user.args[:1] != (source,)
                if name in _SCALED and (divides or any(math.prod(self._shape(e)) != 1 for e in others)):
                    return False
                if name in _UP_TO_SOFTMAX:
                    waiting.append(user)
                elif name not in ("softmax", "_softmax") or _axis(self._gm, user) not in (-1, ndim - 1):
                    return False
        return True

    def _producer_of(self, node: Node) -> Site | None:
        """The layer whose outputs a value is, moved about and scaled."""
        while node not in self._sites:
            name = operation_of(self._gm, node)
            if not node.all_input_nodes or not (is_move(node, name) or name in _SCALED):
                return None
            node = node.all_input_nodes[0]
        return self._sites[node]

    def _shape(self, node: Node) -> tuple[int, ...]:
        known = self.met.values.get(node)
        return tuple(known.shape) if isinstance(known, Tensor) else shape_of(node) or ()


def operands_of(node: Node) -> dict[str, Any]:
    """What a node of attention is given, by name."""
    return dict(zip(_OPERANDS, node.args, strict=False)) | dict(node.kwargs)


def _axis(gm: GraphModule, node: Node) -> object:
    """The axis of a softmax."""
    if node.op == "call_module":
        return getattr(gm.get_submodule(str(node.target)), "dim", None)
    return node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
