"""Edits of graphs that no network of usual depth shows."""

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from fxdecomp.replacing import remove_unused


def chain(graph: Graph, start: Node, length: int) -> Node:
    for _ in range(length):
        start = graph.call_function(torch.relu, (start,))
    return start


def test_only_what_comes_from_constants_is_removed_however_deep_the_graph_is() -> None:
    root = nn.Module()
    root.register_buffer("unused", torch.ones(2))
    graph = Graph()
    x, unused = graph.placeholder("x"), graph.get_attr("unused")
    chain(graph, unused, 3)
    y = chain(graph, x, 3000)  # deeper than Python's stack
    dead = graph.call_function(torch.relu, (y,))
    graph.output(y)
    gm = GraphModule(root, graph)
    remove_unused(gm)
    left = list(gm.graph.nodes)
    assert len(left) == 1 + 3000 + 1 + 1
    assert dead in left
    assert not hasattr(gm, "unused")
