"""`graph_diff`: two graphs as text, and what changed between them."""

from __future__ import annotations

import difflib

from torch import nn
from torch.fx import GraphModule, Node

from fxdecomp.graphs.inputs import require_graph
from fxdecomp.sites.base import shape_of
from fxdecomp.sites.modules import Layer


def graph_text(gm: GraphModule) -> list[str]:
    """One line per node: its name, what it calls on what, the layer in words, and the shape of its value."""
    return [node_text(gm, node) for node in gm.graph.nodes]


def graph_diff(before: GraphModule, after: GraphModule) -> str:
    """A unified text diff of two graphs, empty where they agree.

    Raises:
        FxdecompError: One is no GraphModule.

    Example:
        >>> import torch, fxdecomp
        >>> gm = fxdecomp.trace(torch.nn.Sequential(torch.nn.ReLU()), torch.randn(1, 4))
        >>> fxdecomp.graph_diff(gm, gm)
        ''
    """
    for graph in (before, after):
        require_graph(graph, "graph_diff")
    return "\n".join(
        difflib.unified_diff(graph_text(before), graph_text(after), "before", "after", lineterm="")
    )


def node_text(gm: GraphModule, node: Node) -> str:
    """One node in a line."""
    shape = shape_of(node)
    sizes = "" if shape is None else f"  [{'x'.join(map(str, shape))}]"
    if node.op == "placeholder":
        return f"{node.name} = input{sizes}"
    arguments = ", ".join(
        [*map(_argument, node.args), *(f"{key}={_argument(value)}" for key, value in node.kwargs.items())]
    )
    if node.op == "output":
        return f"return {arguments}"
    if node.op == "get_attr":
        return f"{node.name} = {node.target}{sizes}"
    words = ""
    if node.op == "call_module":
        words = f"  {module_words(gm.get_submodule(str(node.target)))}"
    return f"{node.name} = {target_text(node)}({arguments}){words}{sizes}"


def target_text(node: Node) -> str:
    """What a node calls, by name."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def module_words(module: nn.Module) -> str:
    """A module's class, and the options of a layer."""
    name = type(module).__name__
    return f"{name}({module.extra_repr()})" if isinstance(module, Layer) else name


def _argument(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_argument, value))})"
    return value.name if isinstance(value, Node) else repr(value)
