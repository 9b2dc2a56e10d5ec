"""Where the channels of a layer's output go: the views, turns and cuts of a graph, run on their numbers.

Every element of the output is given the number of its channel; the nodes that only move elements about are
then run on these numbers. What comes out says which channel stands where, whatever the dialect, and so does
what they make of fewer channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import GraphModule, Node

from fxdecomp.places.operations import operation_of
from fxdecomp.sites.base import shape_of

_SAME = frozenset(
    (
        *("contiguous", "clone", "detach", "alias", "to", "_to_copy", "type_as", "float", "half", "double"),
        *("bfloat16", "identity", "dropout", "feature_dropout", "lift_fresh"),
    )
)
"""Operations that leave every element where it is."""

_SHAPED = frozenset(("reshape", "view", "_unsafe_view"))
_SIZED = _SHAPED | {"expand", "unflatten"}
_SPLIT = frozenset(("split", "split_with_sizes"))
_SLICED = frozenset(("narrow", "slice"))
_MOVED = frozenset(
    (
        *("flatten", "transpose", "permute", "swapaxes", "movedim", "moveaxis", "t", "unsqueeze", "squeeze"),
        *("select", "chunk", "unbind", "repeat", "repeat_interleave", "getitem", "mT", "numpy_T"),
    )
)
_MOVES = _SAME | _SIZED | _SPLIT | _SLICED | _MOVED
"""Operations that give the elements of one value in another order or shape, some of them or some again."""

_END = 1 << 40
"""Ends of slices beyond it mean the end of the axis."""

SizeOf = Callable[[Node, int], Any]
"""Gives one of the sizes that a node computes together."""


@dataclass(frozen=True, slots=True)
class Inner:
    """The channels of every head, of which some are to go.

    Attributes:
        size: How many there are.
        stride: How far those of one head are apart.
        kept: How many are to be left.
    """

    size: int
    stride: int
    kept: int

    def places(self, channels: Tensor) -> Tensor:
        """The place of channels within their heads."""
        return channels // self.stride % self.size

    def moved(self, channels: Tensor) -> Tensor:
        """The numbers that channels have among those that are left, where they are."""
        block = self.size * self.stride
        return channels // block * (self.kept * self.stride) + channels % block

    def left(self, channels: Tensor) -> Tensor:
        """The numbers of those channels that are left, in their order."""
        flat = channels.flatten()
        return self.moved(flat[self.places(flat) < self.kept])

    def is_regular(self, heads: Tensor) -> bool:
        """Whether rows of channels are whole heads."""
        whole = heads[:, :1] + self.stride * torch.arange(self.size)
        return torch.equal(heads, whole) and not bool(self.places(heads[:, 0]).any())

    def is_along(self, channels: Tensor, axis: int) -> bool:
        """Whether an axis goes through the channels of heads."""
        if channels.stride(axis) == 0:
            return False
        places = self.places(compact(channels).movedim(axis, -1))
        return not bool((places == places[..., :1]).all())

    def require_alone(self, channels: Tensor, axis: int) -> None:
        """Raise `ValueError` where an axis goes through other things besides, whose number may change."""
        if not bool((compact(channels).movedim(axis, -1).sort(-1).values.diff(dim=-1) != 0).all()):
            raise ValueError("it mixes channels with positions")

    def fewer(self, count: int) -> int:
        """What is left of a number of channels.

        Raises:
            ValueError: They are no whole heads.
        """
        if count % self.size:
            raise ValueError("it cuts heads apart")
        return count // self.size * self.kept


def compact(values: Tensor) -> Tensor:
    """One of each along axes along which a value is stored once."""
    for axis in range(values.ndim):
        if values.stride(axis) == 0:
            values = values.narrow(axis, 0, 1)
    return values


def is_move(node: Node, name: str) -> bool:
    """Whether an operation only moves the elements of one value about."""
    if name == "getattr":
        return node.args[1] in ("T", "mT")
    return name in _MOVES


class Moves:
    """Runs the moves of one graph."""

    def __init__(self, gm: GraphModule) -> None:
        self._gm = gm
        self._known: dict[Node, Any] = {}

    def run(self, node: Node, values: Mapping[Node, Any], args: tuple[Any, ...] | None = None) -> Any:
        """What a move makes of the numbers of channels.

        Args:
            node: The move.
            values: The numbers so far, by the node that gives them.
            args: What is to be taken for its arguments, None for its own.
        """
        name, given = operation_of(self._gm, node), node.args if args is None else args
        if name in _SAME:
            return values[node.all_input_nodes[0]]
        both: Any = fx.node.map_arg((given, node.kwargs), lambda each: self._value(each, values))
        filled, kwargs = both
        if name in _SHAPED:  # what is the same along an axis is stored once; a view would want it whole
            return filled[0].reshape(*filled[1:])
        if node.op == "call_module":
            return self._gm.get_submodule(str(node.target))(*filled, **kwargs)
        if node.op == "call_method":
            return getattr(filled[0], str(node.target))(*filled[1:], **kwargs)
        assert callable(node.target)  # a call_function's target is; narrows the type
        return node.target(*filled, **kwargs)

    def number(self, value: Any) -> Any:
        """A size, or several, as they are for the example inputs."""
        return fx.node.map_arg(value, lambda each: self._value(each, {}))

    def _value(self, node: Node, values: Mapping[Node, Any]) -> Any:
        """The numbers that a node gives; of any other a tensor of its shape, or the size that it computes."""
        if node in values:
            return values[node]
        if node not in self._known:
            shape = shape_of(node)
            if shape is not None:
                self._known[node] = torch.empty(shape, device="meta")
            elif node.op == "call_method":
                receiver, *others = map(self.number, node.args)
                self._known[node] = getattr(receiver, str(node.target))(*others)
            elif node.op == "call_function" and callable(node.target):
                self._known[node] = node.target(*map(self.number, node.args))
            else:
                raise ValueError(f"{node.name} has no known shape")
        return self._known[node]

    def narrowed(
        self, node: Node, before: Any, after: Any, inner: Inner, size_of: SizeOf | None = None
    ) -> tuple[Any, ...]:
        """The arguments of a move on fewer channels: sizes and places along their axis are others.

        Args:
            node: The move.
            before: The numbers that it is given.
            after: What it gives.
            inner: Which of the channels are left.
            size_of: Gives single sizes where the move is given all together; None for those of the example.

        Raises:
            ValueError: It cannot be told how; a sentence.
        """
        name = operation_of(self._gm, node)
        args: list[Any] = list(node.args)
        if name in _SIZED and node.op != "call_module":
            start, first = (2, args[1] % before.ndim) if name == "unflatten" else (1, 0)
            sizes = self._resized(args[start:], (after, first), inner, size_of or self._size_of)
            return (*args[:start], *sizes)
        if name in _SPLIT | _SLICED:
            place = 2 if name in _SPLIT else 1
            axis: Any = node.kwargs.get("dim", args[place] if place < len(args) else 0)
            if inner.is_along(before, axis):
                for cut in (1,) if name in _SPLIT else range(2, min(4, len(args))):
                    args[cut] = self._cut(args[cut], inner)
        if name == "getitem" and isinstance(before, Tensor):
            args[1] = self._indexed(args[1], before, inner)
        return tuple(args)

    def _resized(
        self, given: list[Any], result: tuple[Tensor, int], inner: Inner, size_of: SizeOf
    ) -> list[Any]:
        """Other sizes; the result has its first of them at an axis."""
        after, first = result
        together = len(given) == 1 and not isinstance(self.number(given[0]), int)
        if together and isinstance(given[0], Node):
            count = len(self.number(given[0]))
            along = [inner.is_along(after, first + place) for place in range(count)]
            sizes = [given[0] if each else size_of(given[0], place) for place, each in enumerate(along)]
        else:
            sizes = list(given[0]) if together else given
        for place, size in enumerate(sizes):
            axis = first + place
            if inner.is_along(after, axis) and self.number(size) != -1:
                if isinstance(size, Node):
                    inner.require_alone(after, axis)
                sizes[place] = inner.fewer(after.shape[axis])
        return [tuple(sizes)] if together else sizes

    def _size_of(self, node: Node, place: int) -> Any:
        return self.number(node)[place]

    def _cut(self, value: Any, inner: Inner) -> Any:
        """A length or a place along an axis of channels."""
        if isinstance(value, list | tuple):
            return [self._cut(each, inner) for each in value]
        number = self.number(value)
        return value if number is None or number >= _END else inner.fewer(number)

    def _indexed(self, index: Any, before: Tensor, inner: Inner) -> Any:
        """An index whose slices along an axis of channels have other ends."""
        items = index if isinstance(index, tuple) else (index,)
        taken = sum(each is not None and each is not Ellipsis for each in items)
        found: list[Any] = []
        axis = 0
        for each in items:
            cut = each
            if each is Ellipsis:
                axis += before.ndim - taken
            elif each is not None:
                if isinstance(each, slice) and (each.start, each.stop) != (None, None):
                    along = inner.is_along(before, axis)
                    start, stop = (self._cut(e, inner) if along else e for e in (each.start, each.stop))
                    cut = slice(start, stop, each.step)
                axis += 1
            found.append(cut)
        return tuple(found) if isinstance(index, tuple) else found[0]
