"""The heads of a network: layers whose output is the network's, since no other layer stands behind them."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Set as AbstractSet

from torch.fx import GraphModule, Node

from fxdecomp.sites.base import Site

_ENOUGH = 2
"""Of the layers behind a node, two tell whether there is one beside the layer itself."""


def heads_of(gm: GraphModule, sites: Collection[Site], layers: AbstractSet[Node]) -> frozenset[str]:
    """The names of the sites that no other layer stands behind, at any of their calls.

    A network all of whose sites are such, as one of a single layer, has no heads.

    Args:
        gm: The graph.
        sites: The layers that a chain could replace.
        layers: All nodes that apply a layer, whether or not it could be replaced.

    Cost: linear in the number of nodes.
    """
    names = {call.node: site.name for site in sites for call in site.calls}
    behind: dict[Node, frozenset[str]] = {}
    for node in reversed(gm.graph.nodes):
        found: set[str] = set()
        for user in node.users:
            found |= behind[user]
            if user in layers:
                found.add(names.get(user, user.name))
        behind[node] = frozenset(sorted(found)[:_ENOUGH])
    heads = {site.name for site in sites if all(behind[call.node] <= {site.name} for call in site.calls)}
    return frozenset(heads) if len(heads) < len(sites) else frozenset()
