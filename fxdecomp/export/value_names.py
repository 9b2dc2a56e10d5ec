"""Names of the values and nodes of an ONNX graph, those of its subgraphs among them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def subgraphs(node: Any) -> Iterator[Any]:
    """The graphs that a node holds: bodies of loops, branches."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def read_by(node: Any) -> Iterator[str]:
    """Names of the values that a node reads, those that its subgraphs take from outside among them."""
    yield from (name for name in node.input if name)
    for graph in subgraphs(node):
        yield from values_read(graph)


def values_read(graph: Any) -> Iterator[str]:
    """Names of all values that the nodes of a graph read, or that it gives."""
    for node in graph.node:
        yield from read_by(node)
    yield from (item.name for item in graph.output)


def all_names(graph: Any) -> set[str]:
    """Names of all values, those of subgraphs among them."""
    names = {item.name for item in (*graph.input, *graph.output, *graph.initializer)}
    names |= {item.values.name for item in graph.sparse_initializer}
    for node in graph.node:
        names |= set(node.output)
        for inner in subgraphs(node):
            names |= all_names(inner)
    return names


def node_names(graph: Any) -> set[str]:
    """Names of all nodes, likewise."""
    names = {node.name for node in graph.node}
    for node in graph.node:
        for inner in subgraphs(node):
            names |= node_names(inner)
    return names
