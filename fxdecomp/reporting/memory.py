"""What a network's weights and values take in memory, from its graph; nothing is run."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch.utils._pytree as pytree
from torch.fx import GraphModule, Node

from fxdecomp.sites import survey


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one network, for the batch that it was traced with.

    Attributes:
        weight_bytes: Parameters and buffers.
        value_bytes: Values that are alive at once, at most.
        at: The node at which.
    """

    weight_bytes: int
    value_bytes: int
    at: str


def memory_of(gm: GraphModule) -> Memory:
    """Walk through a graph in its order and add up which values a later node still reads.

    What has no weights writes over a value of its size that nothing else reads, as runtimes plan it.

    Args:
        gm: A graph with recorded shapes.
    """
    stored = {id(each): each for each in itertools.chain(gm.parameters(), gm.buffers())}
    weights = sum(each.numel() * each.element_size() for each in stored.values())
    layers = {call.node for site in survey(gm).sites for call in site.calls}
    last = {read: node for node in gm.graph.nodes for read in node.all_input_nodes}
    live, most, at = 0, 0, ""
    for node in gm.graph.nodes:
        if node.op in ("get_attr", "output"):
            continue
        own = _bytes(node)
        spent = [
            _bytes(read) for read in node.all_input_nodes if last[read] is node and read.op != "get_attr"
        ]
        reused = own if node not in layers and own in spent else 0
        if live + own - reused > most:
            most, at = live + own - reused, node.name
        live += (own if node in last else 0) - sum(spent)
    return Memory(weights, most, at)


def _bytes(node: Node) -> int:
    """Bytes of a node's value, 0 where its shape is not known."""
    recorded = node.meta.get("tensor_meta", node.meta.get("val"))
    leaves = pytree.tree_leaves(recorded, is_leaf=lambda each: hasattr(each, "dtype"))
    sizes = [(leaf.shape, leaf.dtype.itemsize) for leaf in leaves if hasattr(leaf, "dtype")]
    return sum(math.prod(map(int, shape)) * size for shape, size in sizes)
