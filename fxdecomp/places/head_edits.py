"""What becomes of the nodes between heads and their products when the heads are narrower.

Sizes, starts and lengths that are stated along the axis of a head become others; sizes that are read there,
as for a scale, stay what they were. Then the moves are run on the numbers of fewer channels: where these come
to other places than before, the heads stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fxdecomp.errors import first_line
from fxdecomp.places.attention import Met, Way
from fxdecomp.places.heads import HeadPlaces, Heads
from fxdecomp.places.moving import Inner, SizeOf, is_move
from fxdecomp.places.operations import operation_of
from fxdecomp.places.states import States


@dataclass(frozen=True, slots=True, eq=False)
class HeadEdits:
    """New arguments of nodes.

    Attributes:
        args: The arguments of moves.
        fixed: The sizes that are read and have to stay, by the nodes that give them.
        axes: The values on the way, with the axes of heads and their new lengths.
    """

    args: Mapping[Node, tuple[Any, ...]]
    fixed: Mapping[Node, int]
    axes: Mapping[Node, Mapping[int, int]]


def edits_of(found: HeadPlaces, heads: Heads | States, kept: int, size_of: SizeOf | None = None) -> HeadEdits:
    """What becomes of the nodes between, with fewer channels a head.

    Args:
        found: The graph.
        heads: The layers; the states of a direction count as a head.
        kept: Channels of a head that are left.
        size_of: Gives single sizes where a node computes several together; None for those of the example.

    Raises:
        ValueError: The heads would not come to the same places; a sentence.
    """
    inner, met = heads.inner(kept), heads.met
    args, axes = {}, {}
    for node, after in met.values.items():
        given = [source for source in node.all_input_nodes if source in met.values]
        try:
            if len(given) == 1 and is_move(node, operation_of(found.gm, node)):
                args[node] = found.moves.narrowed(node, met.values[given[0]], after, inner, size_of)
            if isinstance(after, Tensor):
                along = [axis for axis in range(after.ndim) if inner.is_along(after, axis)]
                axes[node] = {axis: inner.fewer(after.shape[axis]) for axis in along}
        except ValueError as error:
            raise ValueError(f"{node.name} cannot be made narrower: {error}") from None
    fixed = {each: size for node in met.sizes for each, size in _fixed(found, node, met, inner)}
    if size_of is None:
        _check(found, heads, inner, args)
    return HeadEdits(args, fixed, axes)


def _check(
    found: HeadPlaces, heads: Heads | States, inner: Inner, args: Mapping[Node, tuple[Any, ...]]
) -> None:
    """Raise where fewer channels do not stand in the places that they had."""
    way, old = Way(found.gm, found.sites, found.moves), heads.met
    try:
        stopped = way.follow(heads.starts(inner.kept), args)
    except Exception as error:  # noqa: BLE001 - whatever torch raises on numbers that do not fit
        raise ValueError(f"narrower heads do not fit ({first_line(error)})") from None
    new = way.met
    if stopped or any(
        one.keys() != other.keys()
        for one, other in ((old.products, new.products), (old.mixed, new.mixed), (old.readers, new.readers))
    ):
        raise ValueError("narrower heads do not go the same way")
    pairs = [(rows, new.mixed[node]) for node, rows in old.mixed.items()]
    pairs += [(columns, new.readers[node]) for node, columns in old.readers.items()]
    for node, product in old.products.items():
        pairs += [(product.left, new.products[node].left), (product.right, new.products[node].right)]
    if not all(torch.equal(inner.left(before), after.flatten()) for before, after in pairs):
        raise ValueError("narrower heads do not come to the same places")


def _fixed(found: HeadPlaces, node: Node, met: Met, inner: Inner) -> list[tuple[Node, int]]:
    """The sizes that a node reads and that would be others, as they are now."""
    channels, name = met.values[met.sizes[node]], operation_of(found.gm, node)
    if (name == "getattr" and node.args[1] != "shape") or name == "dim":
        return []
    axis = None if name == "getattr" else node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    if isinstance(axis, int):
        return [(node, found.moves.number(node))] if _is_along(inner, channels, axis) else []
    taken: list[tuple[Node, int]] = []
    for user in node.users:
        index = user.args[1] if operation_of(found.gm, user) == "getitem" else slice(None)
        read = range(channels.ndim)[index] if isinstance(index, int | slice) else range(channels.ndim)
        axes = (read,) if isinstance(read, int) else read
        if any(_is_along(inner, channels, each) for each in axes):
            if not isinstance(read, int):
                raise ValueError(f"{user.name} reads the sizes of heads all together")
            taken.append((user, found.moves.number(user)))
    return taken


def _is_along(inner: Inner, channels: Tensor, axis: int) -> bool:
    """Whether the length of an axis is another one with fewer channels, and was always the same before."""
    if not inner.is_along(channels, axis):
        return False
    inner.require_alone(channels, axis)
    return True
