"""Which layers read one tensor and look at it alike, so that they may share their first stages.

    x -> q, x -> k, x -> v                      Linears on one tensor
    x -> branch1, x -> branch2                  convolutions of one kernel, stride, padding and dilation
    view(x) -> q, view(x) -> k                  each behind a view of its own, as `torch.export` writes them

Values are compared, not nodes: the same operations on the same value give the same. Where the value may be
written to between two readers, they do not read the same; a sentence says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx
from torch.fx import GraphModule, Node

from fxdecomp.layers import LayerSpec
from fxdecomp.places.operations import is_arrangement, operation_of
from fxdecomp.sites import Site
from fxdecomp.sites.constants import writes

ALONE = "no other layer reads"
"""How the reason begins of a layer with which nobody else could share."""


class Readers:
    """Finds the layers of one graph that read the same. Cost: linear in its nodes."""

    def __init__(self, gm: GraphModule, sites: Sequence[Site]) -> None:
        """Look at a graph.

        Args:
            gm: The graph.
            sites: All of its layers.
        """
        self._gm, self._sites = gm, sites
        self._order = {node: index for index, node in enumerate(gm.graph.nodes)}
        self._layers = {call.node for site in sites for call in site.calls}
        self._values: dict[Node, str] = {}
        self._known: dict[str, int] = {}
        self._roots: dict[Node, frozenset[Node]] = {}

    def groups(self, wanted: Mapping[str, Hashable]) -> tuple[list[tuple[Site, ...]], dict[str, str]]:
        """The layers that may share, and why others may not.

        Args:
            wanted: The layers in question, by name, with what is wanted of them: layers of which different
                things are wanted share nothing.

        Returns:
            Groups of two layers or more, each in the order of the graph; a sentence for every layer that is
            in none.
        """
        alike: dict[Hashable, list[Site]] = defaultdict(list)
        reasons: dict[str, str] = {}
        for site in self._sites:
            if site.name in wanted:
                if obstacle := _obstacle(site):
                    reasons[site.name] = obstacle
                else:
                    alike[self._value(site), _look(site), wanted[site.name]].append(site)
        found = []
        for group in alike.values():
            if len(group) < 2:
                reasons[group[0].name] = self._alone(group[0], wanted, reasons)
            elif writer := self._writer(group):
                sentence = f"{writer.name} may change their input between {_names(group)}"
                reasons |= {site.name: sentence for site in group}
            else:
                found.append(tuple(sorted(group, key=lambda site: self._order[site.calls[0].node])))
        return found, reasons

    def _alone(self, site: Site, wanted: Collection[str], reasons: Mapping[str, str]) -> str:
        """Why no other layer shares with one."""
        value = self._value(site)
        others = [each for each in self._sites if each is not site and self._value(each) == value]
        if not others:
            return f"{ALONE} {site.calls[0].source.name}, its input"
        other = others[0]
        if other.name not in wanted:
            return f"{other.name}, which reads the same, is not to share it"
        if other.name in reasons:
            return f"{other.name}, which reads the same, cannot share it: {reasons[other.name]}"
        if _look(other) != _look(site):
            return f"{other.name} ({other.spec}), which reads the same, looks at it in another way"
        return f"of {other.name}, which reads the same, another method or rank is wanted"

    def _value(self, site: Site) -> str:
        return self._value_of(site.calls[0].source)

    def _value_of(self, node: Node) -> str:
        """A number for the value of a node; equal operations on equal values have equal ones."""
        if node not in self._values:
            if node.op == "get_attr":
                written = f"stored {node.target}"
            elif node in self._layers or not is_arrangement(operation_of(self._gm, node)):
                written = f"node {node.name}"
            else:
                arguments = fx.node.map_arg((node.args, node.kwargs), self._value_of)
                written = f"{node.op} {node.target} {arguments}"
            self._values[node] = f"#{self._known.setdefault(written, len(self._known))}"
        return self._values[node]

    def _writer(self, group: Sequence[Site]) -> Node | None:
        """A node that may write to what a group reads, from the first way to it on to the last reader."""
        sources = {node for site in group for node in self._way(site.calls[0].source)}
        starts = {site.calls[0].node for site in group} | (sources - self._common(group))
        first, last = min(map(self._order.__getitem__, starts)), max(map(self._order.__getitem__, starts))
        read = frozenset().union(*map(self._roots_of, sources))
        nodes: list[Node] = list(self._gm.graph.nodes)
        for node in nodes[first + 1 : last]:
            if self._is_writer(node) and node.all_input_nodes:
                changed = node.kwargs.get("out", node.args[0] if node.args else None)
                changed = changed if isinstance(changed, Node) else node.all_input_nodes[0]
                if not read.isdisjoint(self._roots_of(changed)):
                    return node
        return None

    def _common(self, group: Sequence[Site]) -> set[Node]:
        """The nodes on the way to the input of every layer of a group."""
        return set.intersection(*(set(self._way(site.calls[0].source)) for site in group))

    def _way(self, node: Node) -> list[Node]:
        """A value and what it is an arrangement of."""
        way = [node]
        while is_arrangement(operation_of(self._gm, way[-1])) and way[-1].all_input_nodes:
            way.append(way[-1].all_input_nodes[0])
        return way

    def _is_writer(self, node: Node) -> bool:
        if node.op == "call_module":
            return bool(getattr(self._gm.get_submodule(str(node.target)), "inplace", False))
        return node.op in ("call_function", "call_method") and writes(node)

    def _roots_of(self, node: Node) -> frozenset[Node]:
        """The values whose memory a value may share: back to layers, inputs and stored tensors."""
        waiting = [node]
        while waiting:
            current = waiting[-1]
            if current in self._layers or not current.all_input_nodes:
                self._roots[current] = frozenset((current,))
            elif missing := [each for each in current.all_input_nodes if each not in self._roots]:
                waiting += missing
                continue
            else:
                self._roots[current] = frozenset().union(
                    *map(self._roots.__getitem__, current.all_input_nodes)
                )
            waiting.pop()
        return self._roots[node]


def stacked(sites: Sequence[Site], scales: Sequence[float]) -> tuple[LayerSpec, Tensor, Tensor | None]:
    """The layer that gives the outputs of several, each scaled.

    Args:
        sites: Layers that look at one input alike.
        scales: What the outputs of each are multiplied with.

    Returns:
        Its geometry, its weight and its bias: zero where a layer has none, None where none has one.
    """
    spec = replace(sites[0].spec, out_channels=sum(site.spec.out_channels for site in sites))
    weight = torch.cat([site.weight * scale for site, scale in zip(sites, scales, strict=True)])
    if all(site.bias is None for site in sites):
        return spec, weight, None
    biases = []
    for site, scale in zip(sites, scales, strict=True):
        zero = site.weight.new_zeros(site.spec.out_channels)
        biases.append(zero if site.bias is None else site.bias * scale)
    return spec, weight, torch.cat(biases)


def _obstacle(site: Site) -> str:
    """Why a layer shares nothing, whatever else reads its input."""
    if len(site.calls) > 1:
        return f"it is applied at {len(site.calls)} places"
    if site.spec.recurrence is not None:
        return "it is a recurrent layer, whose input product has no node of its own"
    return f"it has {site.spec.groups} groups" if site.spec.groups > 1 else ""


def _look(site: Site) -> Hashable:
    """All of a layer but its outputs: what has to be alike."""
    weight = site.weight
    trains = site.trains, site.bias_trains
    return replace(site.spec, out_channels=1), weight.dtype, weight.device, trains


def _names(group: Sequence[Site]) -> str:
    return ", ".join(site.name for site in group[:-1]) + f" and {group[-1].name}"
