"""`graph_diff`: two graphs as text, and what changed between them."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator

from torch import nn
from torch.fx import GraphModule, Node

from fxdecomp.graphs.inputs import require_graph
from fxdecomp.sites.base import shape_of
from fxdecomp.sites.modules import Layer


def graph_text(gm: GraphModule) -> list[str]:
    """One line per node: its name, what it calls on what, the layer in words, and the shape of its value."""
    return [node_text(gm, node) for node in gm.graph.nodes]


def graph_diff(before: GraphModule, after: GraphModule) -> str:
    """A unified text diff of two graphs, empty where they agree; what a layer became stands below the layer.

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
    diff = difflib.unified_diff(graph_text(before), graph_text(after), "before", "after", lineterm="")
    lines = list(diff)
    return "\n".join([*lines[:2], *_by_layer(lines[2:], _called(before), _called(after))])


def _called(gm: GraphModule) -> dict[str, str]:
    """What each node's line is about: the module that it calls, or else the node itself."""
    return {
        node_text(gm, node): str(node.target) if node.op == "call_module" else node.name
        for node in gm.graph.nodes
    }


def _by_layer(lines: list[str], before: dict[str, str], after: dict[str, str]) -> Iterator[str]:
    """The lines of a diff, each layer that goes followed by what comes for it; the order of both is kept."""
    for changed, group in itertools.groupby(lines, lambda line: line[:1] in ("-", "+")):
        if not changed:
            yield from group
            continue
        run = list(group)
        gone = [line for line in run if line[0] == "-"]
        come = [line for line in run if line[0] == "+"]
        places = {before[line[1:]]: place for place, line in enumerate(gone)}
        owned: list[list[str]] = [[] for _ in range(len(gone) + 1)]
        place = -1
        for line in come:
            place = max(place, _owner(after[line[1:]], places))
            owned[place + 1].append(line)
        yield from owned[0]
        for line, others in zip(gone, owned[1:], strict=True):
            yield line
            yield from others


def _owner(called: str, places: dict[str, int]) -> int:
    """The place of the layer that a node is a stage of, or is itself; -1 for neither."""
    while called and called not in places:
        called = called.rpartition(".")[0]
    return places.get(called, -1)


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
