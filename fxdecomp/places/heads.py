"""Which layers give the heads of attention and meet in products of these alone, so that they may be narrower.

    x -> q -> heads --+
                      q k^T -> softmax --+
    y -> k -> heads --+                  p v -> heads together -> out
    y -> v -> heads ---------------------+

A head's channels of q and of k are one axis, over which is summed; those of v are one axis with inputs of the
layer behind. A layer that gives q, k and v has one axis for all of them. Where a head is anything else, or
something else reads it, a sentence says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxdecomp.errors import first_line
from fxdecomp.places.attention import Met, Way
from fxdecomp.places.contractions import is_product
from fxdecomp.places.coupling import obstacle_at
from fxdecomp.places.moving import Inner, Moves
from fxdecomp.places.operations import operation_of, spreads_over
from fxdecomp.sites import Site
from fxdecomp.sites.base import shape_of


@dataclass(frozen=True, slots=True, eq=False)
class Pairing:
    """Heads that are multiplied with each other, and with no others.

    Attributes:
        left: Their channels on the one side, `[heads, size]`.
        right: Those on the other.
        ignores_mean: Whether what the right side has in common at all places changes nothing.
    """

    left: Tensor
    right: Tensor
    ignores_mean: bool


@dataclass(frozen=True, slots=True, eq=False)
class Heads:
    """Layers whose heads are narrowed together. Channels have numbers through all producers.

    Attributes:
        producers: The layers whose outputs are heads.
        reader: The layer that reads mixed heads, None where there are queries and keys alone.
        size: Channels of a head.
        stride: How far they are apart.
        pairings: Queries and keys.
        values: Channels of the heads that are mixed, `[heads, size]`.
        columns: The channels that are the reader's inputs, empty without one.
        met: What lies between.
    """

    producers: tuple[Site, ...]
    reader: Site | None
    size: int
    stride: int
    pairings: tuple[Pairing, ...]
    values: Tensor
    columns: Tensor
    met: Met

    @property
    def layers(self) -> tuple[Site, ...]:
        """All of them."""
        return self.producers if self.reader is None else (*self.producers, self.reader)

    def inner(self, kept: int) -> Inner:
        """The channels of a head, of which some are left."""
        return Inner(self.size, self.stride, kept)

    def starts(self, kept: int) -> dict[Node, Tensor]:
        """The outputs of the producers with so many channels a head, as their numbers."""
        return _numbered(self.producers, kept / self.size)


class HeadPlaces:
    """Finds heads in one graph. Cost: for each layer, the nodes between, run on numbers of channels."""

    def __init__(self, gm: GraphModule, sites: Sequence[Site]) -> None:
        self.gm, self.moves = gm, Moves(gm)
        self.sites = {call.node: site for site in sites for call in site.calls}

    def of(self, producer: Site) -> Heads | str | None:
        """The heads that a layer gives, why they stay as they are, or None where it gives none."""
        if not self._reaches_products(producer):
            return None
        producers = [producer]
        while True:
            if obstacle := next(filter(None, map(_obstacle, producers)), ""):
                return obstacle
            way = Way(self.gm, self.sites, self.moves)
            try:
                found = way.follow(_numbered(producers))
                if isinstance(found, str):
                    return found or self._heads(producers, way.met)
            except Exception as error:  # noqa: BLE001 - whatever torch raises on numbers that do not fit
                return f"their way to a product cannot be followed ({first_line(error)})"
            if found in producers:
                return f"{found.name} meets itself along an axis that is no head's"
            producers.append(found)

    def _heads(self, producers: Sequence[Site], met: Met) -> Heads | str:
        """What was met as heads, or what forbids that."""
        products = list(met.products.values())
        rows = [*(side for each in products for side in (each.left, each.right)), *met.mixed.values()]
        sizes = sorted({each.shape[1] for each in rows})
        if not rows:
            return "they reach no product of heads"
        if len(sizes) > 1:
            return f"heads of {' and of '.join(map(str, sizes))} channels are in one place"
        stride = int(rows[0][0, 1] - rows[0][0, 0]) if sizes[0] > 1 else 0
        inner = Inner(sizes[0], stride, sizes[0])
        if stride < 1 or not all(map(inner.is_regular, rows)):
            return "the channels of a head are one alone, or not at equal distances"
        if obstacle := _misfit(producers, met, inner):
            return obstacle
        for source, other in met.factors:
            if not self._is_alike(met, source, other, inner):
                return f"{other.name} multiplies the channels of a head by different numbers"
        mixed = {int(row[0]): row for rows in met.mixed.values() for row in rows}
        values = torch.stack([mixed[first] for first in sorted(mixed)]) if mixed else rows[0][:0]
        columns = next(iter(met.readers.values()), torch.zeros(0, dtype=torch.long))
        reader = next((self.sites[node] for node in met.readers), None)
        return Heads(tuple(producers), reader, sizes[0], stride, _pairings(met), values, columns, met)

    def _is_alike(self, met: Met, source: Node, other: Node, inner: Inner) -> bool:
        """Whether a factor is the same for all channels of a head."""
        channels, shape = met.values[source], shape_of(other)
        if shape is None:
            return isinstance(self.moves.number(other), int | float)
        axes = [axis for axis in range(channels.ndim) if inner.is_along(channels, axis)]
        return all(spreads_over(shape, channels.ndim, axis) for axis in axes)

    def _reaches_products(self, producer: Site) -> bool:
        """Whether there is a product of two values before the next layers."""
        waiting = [call.node for call in producer.calls]
        seen = set(waiting)
        while waiting:
            for user in waiting.pop().users:
                if is_product(operation_of(self.gm, user)) and user not in self.sites:
                    return True
                if user not in seen and user not in self.sites:
                    seen.add(user)
                    waiting.append(user)
        return False


def _numbered(producers: Sequence[Site], share: float = 1.0) -> dict[Node, Tensor]:
    """The outputs of layers, every element the number of its channel; of a share of the channels."""
    found, start = {}, 0
    for site in producers:
        shape = list(shape_of(site.calls[0].node) or ())
        axis = len(shape) - 1 - site.spec.ndim
        shape[axis] = round(share * site.spec.out_channels)
        numbers = torch.arange(start, start + shape[axis]).reshape(-1, *(1 for _ in shape[axis + 1 :]))
        found[site.calls[0].node] = numbers.expand(shape)
        start += shape[axis]
    return found


def _obstacle(producer: Site) -> str:
    """Why the outputs of a layer are no heads to be narrowed, whatever reads them."""
    if not bool(producer.weight.isfinite().all()):
        return f"the weight of {producer.name} holds NaN or infinity"
    return obstacle_at(producer)


def _misfit(producers: Sequence[Site], met: Met, inner: Inner) -> str:
    """Why not every channel is that of one head, which has one use; empty where it is."""
    everyone = sum(site.spec.out_channels for site in producers)
    left, right, mixed = (torch.zeros(everyone, dtype=torch.bool) for _ in range(3))
    for product in met.products.values():
        left[product.left.flatten()] = True
        right[product.right.flatten()] = True
    for rows in met.mixed.values():
        mixed[rows.flatten()] = True
    uses = left.int() + right.int() + mixed.int()
    block = inner.size * inner.stride
    if bool((uses > 1).any()):
        return "the same outputs are on two sides of products"
    if not bool(uses.all()) or any(site.spec.out_channels % block for site in producers):
        return f"{int((uses == 0).sum())} of their outputs are no head's"
    if len(met.readers) > 1:
        return f"{' and '.join(node.name for node in met.readers)} both read them"
    columns = next(iter(met.readers.values()), torch.zeros(0, dtype=torch.long))
    if set(columns.tolist()) != set(mixed.nonzero().flatten().tolist()):
        return "one layer should read all mixed heads, and nothing else of them"
    return ""


def _pairings(met: Met) -> tuple[Pairing, ...]:
    """Products of heads, those that have a head in common together."""
    found: list[tuple[set[int], set[int], bool]] = []
    known: dict[int, Tensor] = {}
    for product in met.products.values():
        for left, right in zip(product.left, product.right, strict=True):
            one, other = int(left[0]), int(right[0])
            known |= {one: left, other: right}
            own = [each for each in found if one in each[0] or other in each[1]]
            found = [each for each in found if each not in own]
            lefts, rights = {one}.union(*(each[0] for each in own)), {other}.union(*(each[1] for each in own))
            found.append((lefts, rights, product.ignores_mean and all(each[2] for each in own)))
    return tuple(
        Pairing(
            torch.stack([known[row] for row in sorted(left)]),
            torch.stack([known[row] for row in sorted(right)]),
            alike,
        )
        for left, right, alike in found
    )
