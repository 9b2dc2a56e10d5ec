"""Which values of a graph have a layer's outputs for their channels, up to the one layer that reads them.

    x -> fc1 -> gelu -> fc2                     fc1's outputs are fc2's inputs, one by one
    x -> gate -> silu --+
    x -> up -----------mul -> down              two layers give the factors of down's inputs
    x -> expand -> relu -> depthwise -> project     a depthwise layer keeps channels apart
    y -> pool -> fc1 -> relu -> fc2 -> sigmoid --+
    y ------------------------------------------mul -> project     a gate is made of what it multiplies

Where a value goes elsewhere, the outputs stay as they are, and a sentence says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch.fx import GraphModule, Node

from fxdecomp.places.operations import (
    PRODUCTS,
    axis_after,
    is_arrangement,
    is_elementwise,
    is_of_two,
    operation_of,
    reads_other_sizes,
    spreads_over,
)
from fxdecomp.sites import Site
from fxdecomp.sites.base import shape_of
from fxdecomp.sites.constants import Constants

_MOST_PRODUCERS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Coupling:
    """Layers that share an axis.

    Attributes:
        producers: The layers whose outputs it is: one, or those of both sides of a gate.
        carriers: Depthwise layers on the way.
        consumer: The layer whose inputs it is.
        squeezes: Layers that read it to make gates of it (Hu et al. 2018, squeeze and excitation).
        excitations: The layers whose outputs these gates are.
        axes: The values in between, with the place of the axis from the front.
        is_product: Whether what several producers give is multiplied, and not added up.
    """

    producers: tuple[Site, ...]
    carriers: tuple[Site, ...]
    consumer: Site
    axes: Mapping[Node, int]
    squeezes: tuple[Site, ...] = ()
    excitations: tuple[Site, ...] = ()
    is_product: bool = True

    @property
    def layers(self) -> tuple[Site, ...]:
        """All of them."""
        return (*self.producers, *self.carriers, *self.squeezes, *self.excitations, self.consumer)

    @property
    def readers(self) -> tuple[Site, ...]:
        """Those that have fewer inputs."""
        return (self.consumer, *self.squeezes)


class Couplings:
    """Follows the outputs of layers through one graph. Cost: linear in its nodes, for each layer."""

    def __init__(self, gm: GraphModule, sites: Sequence[Site]) -> None:
        self._gm, self._constants = gm, Constants(gm)
        self._sites = {call.node: site for site in sites for call in site.calls}

    def of(self, producer: Site) -> Coupling | str:
        """What shares the axis of a layer's outputs, or why it cannot be followed."""
        producers = [producer]
        while len(producers) <= _MOST_PRODUCERS:
            obstacle = next(filter(None, map(obstacle_at, producers)), "")
            if obstacle:
                return obstacle
            found = _Walk(self._gm, self._constants, self._sites, producers).follow()
            if not isinstance(found, Site):
                return found
            producers.append(found)
        return "they are joined with those of many layers"


def obstacle_at(producer: Site) -> str:
    """Why the outputs of a layer cannot be narrowed, whatever reads them."""
    spec = producer.spec
    if len(producer.calls) > 1:
        return f"{producer.name} is applied at {len(producer.calls)} places"
    if spec.recurrence is not None:
        return f"{producer.name} is a recurrent layer, whose outputs are its states"
    return f"{producer.name} has groups" if spec.groups > 1 else ""


class _Walk:
    """One way through the graph, from its producers on."""

    def __init__(
        self, gm: GraphModule, constants: Constants, sites: Mapping[Node, Site], producers: Sequence[Site]
    ) -> None:
        self._gm, self._constants, self._sites = gm, constants, sites
        self._producers = producers
        self._axes: dict[Node, int] = {}
        self._carriers: list[Site] = []
        self._readers: list[Site] = []
        self._is_product = True

    def follow(self) -> Coupling | Site | str:
        """The coupling; another producer that belongs to it; or why it cannot be followed."""
        starts = {site.calls[0].node: site for site in self._producers}
        for node in self._gm.graph.nodes:
            given = [source for source in node.all_input_nodes if source in self._axes]
            if node in starts:
                if given:
                    return f"{starts[node].name} reads outputs that it is joined with"
                self._axes[node] = len(shape_of(node) or ()) - 1 - starts[node].spec.ndim
            elif given:
                found = self._layer(node, given) if node in self._sites else self._step(node, given)
                if found:
                    return found
        before = {site: self._all_before(site.calls[0].node) for site in self._producers}
        gated = {
            site: {each for each in self._readers if each.calls[0].node in before[site]} for site in before
        }
        squeezes = tuple(site for site in self._readers if any(site in each for each in gated.values()))
        readers = [site for site in self._readers if site not in squeezes]
        if not readers:
            return "no layer reads them"
        if len(readers) > 1:
            return f"{readers[0].name} and {readers[1].name} both read them"
        producers = tuple(site for site in self._producers if not gated[site])
        excitations = tuple(site for site in self._producers if gated[site])
        parts = producers, tuple(self._carriers), readers[0], self._axes, squeezes, excitations
        return Coupling(*parts, self._is_product)

    @staticmethod
    def _all_before(node: Node) -> set[Node]:
        """Everything that a value is made of."""
        found: set[Node] = set()
        left = [node]
        while left:
            more = [each for each in left.pop().all_input_nodes if each not in found]
            found.update(more)
            left += more
        return found

    def _layer(self, node: Node, given: Sequence[Node]) -> str:
        site = self._sites[node]
        call, axis = site.calls[0], self._axes[given[0]]
        ndim = len(shape_of(given[0]) or ())
        obstacle = ""
        if len(site.calls) > 1:
            obstacle = f"{site.name}, which reads them, is applied at {len(site.calls)} places"
        elif len(given) > 1 or call.source is not given[0]:
            obstacle = f"{site.name} reads them besides its input"
        elif axis != ndim - 1 - site.spec.ndim:
            obstacle = f"{site.name} reads them along another axis"
        elif site.spec.is_depthwise:
            self._axes[node] = len(shape_of(node) or ()) - 1 - site.spec.ndim
            self._carriers.append(site)
        elif site.spec.groups > 1 or site.spec.recurrence is not None:
            kind = "recurrent" if site.spec.recurrence else "grouped"
            obstacle = f"{site.name}, which reads them, is {kind}"
        else:
            self._readers.append(site)
        return obstacle

    def _step(self, node: Node, given: Sequence[Node]) -> Site | str:
        """Go through a node that is no layer; else another producer, or why not."""
        name, axis = operation_of(self._gm, node), self._axes[given[0]]
        if node.op == "output":
            return f"{given[0].name} is an output of the network"
        if reads_other_sizes(node, axis):
            return ""
        others = [each for each in node.all_input_nodes if each not in self._axes]
        if is_of_two(name):
            return self._join(node, given, others)
        after = axis_after(self._gm, node, given[0], axis) if len(given) == 1 and not others else None
        if after is None:
            return f"{node.name} ({name or node.op}) reads them, through which channels are not followed"
        self._axes[node] = after
        return ""

    def _join(self, node: Node, given: Sequence[Node], others: Sequence[Node]) -> Site | str:
        """Sums and products with numbers, with values alike for all channels, or with another layer's."""
        shape, axis = shape_of(node), self._axes[given[0]]
        if shape is None or not all(_spans(shape_of(each), shape, axis) for each in given):
            return f"{node.name} joins them with a value of another shape"
        if any(self._axes[each] != axis for each in given):
            return f"{node.name} joins them along different axes"
        for other in others:
            if spreads_over(self._shape(other), len(shape), axis):
                continue
            producer = self._producer_of(other) if _spans(shape_of(other), shape, axis) else None
            if producer is None or producer in self._producers:
                return f"{node.name} joins them with {other.name}, which is no single layer's output"
            return producer
        if len(given) > 1 and operation_of(self._gm, node) not in PRODUCTS:
            self._is_product = False
        self._axes[node] = axis
        return ""

    def _shape(self, node: Node) -> tuple[int, ...] | None:
        known = self._constants.of(node) if node in self._constants else None
        return shape_of(node) if known is None else tuple(known.value.shape)

    def _producer_of(self, node: Node) -> Site | None:
        """The layer whose outputs a value has for its channels, as far as they can be followed back."""
        while node not in self._sites or self._sites[node].spec.is_depthwise:
            name = operation_of(self._gm, node)
            given = [each for each in node.all_input_nodes if each not in self._constants]
            apart = is_elementwise(name) or is_of_two(name) or is_arrangement(name)
            if node not in self._sites and (len(given) != 1 or not apart):
                return None
            node = self._sites[node].calls[0].source if node in self._sites else given[0]
        return self._sites[node]


def _spans(shape: tuple[int, ...] | None, joined: tuple[int, ...], axis: int) -> bool:
    """Whether a value has all channels of what it is joined to, at all positions or alike at them."""
    if shape is None or len(shape) != len(joined) or shape[axis] != joined[axis]:
        return False
    return all(size in (1, whole) for size, whole in zip(shape, joined, strict=True))
