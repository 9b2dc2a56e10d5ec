"""Edits of graphs that no network of usual depth shows."""

import pickle

import pytest
import torch
from torch import fx, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

import fxdecomp
from fxdecomp.graphs.replacing import remove_unused
from tests.nets import FULL, drawn, image, relative_difference


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


def test_a_graph_keeps_its_hooks_and_attributes() -> None:
    gm = fx.symbolic_trace(drawn(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))))
    gm.register_forward_pre_hook(lambda module, args: (args[0] * 3,))
    gm.register_forward_hook(lambda module, args, output: output + 1)
    gm.labels = ["cat", "dog"]
    small = fxdecomp.transform(fxdecomp.trace(gm, image(2, 8)), FULL)
    assert relative_difference(gm, small, image(2, 8)) < 1e-5
    assert small.labels == ["cat", "dog"]


@pytest.mark.parametrize("made_by", ["torch.export", "make_fx"])
def test_a_graph_of_aten_operators_is_pickled(made_by: str) -> None:
    model = drawn(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)).eval()
    x = image(2, 5, 16)
    gm = fxdecomp.trace(make_fx(model.linear1)(x) if made_by == "make_fx" else model, x)
    small = fxdecomp.transform(gm, FULL)
    for graph in (gm, small):
        assert relative_difference(graph, pickle.loads(pickle.dumps(graph)), x) == 0
    assert fxdecomp.report(small).applied
