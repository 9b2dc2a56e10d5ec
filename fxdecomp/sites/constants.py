"""Constants of a graph: stored tensors, and values computed from stored tensors alone.

A functional layer takes its weight from a get_attr node, often through a transposition, and sometimes through
arithmetic (weight standardisation, a parametrisation that was traced through). Such a weight is materialised.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import GraphModule, Node
from torch.fx.graph_module import _get_attr

_RANDOM = ("rand", "dropout", "bernoulli", "normal_", "multinomial")


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """A value that does not depend on the graph's inputs.

    Attributes:
        value: The tensor.
        path: Qualified name of the stored tensor, None where several went into the value.
        roots: Identities of the stored tensors.
        expression: What is computed from them; equal expressions have equal values.
    """

    value: Tensor
    path: str | None
    roots: frozenset[int]
    expression: str


class Constants:
    """The constant nodes of one graph, found in one walk. Cost: linear in the number of nodes."""

    def __init__(self, gm: GraphModule) -> None:
        self._gm = gm
        self._nodes: set[Node] = set()
        for node in gm.graph.nodes:
            if node.op == "get_attr" or (
                _is_pure_function(node)
                and node.all_input_nodes
                and self._nodes.issuperset(node.all_input_nodes)
            ):
                self._nodes.add(node)

    def of(self, node: object) -> Constant | None:
        """The constant that a node stands for, None where its value depends on an input or on chance."""
        if not isinstance(node, Node) or node not in self._nodes:
            return None
        stored = [n for n in _ancestry(node) if n.op == "get_attr"]
        tensors = [_get_attr(self._gm, str(n.target)) for n in stored]
        if not all(isinstance(tensor, Tensor) for tensor in tensors):
            return None
        value = self._evaluate(node)
        if not isinstance(value, Tensor):
            return None
        paths = {str(n.target) for n in stored}
        path = paths.pop() if len(paths) == 1 else None
        return Constant(value, path, frozenset(map(id, tensors)), self._expression(node))

    def consumers(self, node: Node) -> Iterator[Node]:
        """The nodes that use a constant in earnest: its users, through users that are constant themselves."""
        for user in node.users:
            if user in self._nodes:
                yield from self.consumers(user)
            else:
                yield user

    def _expression(self, node: Node) -> str:
        """Slices of one tensor may have the same roots and shape, but not the same expression."""
        if node.op == "get_attr":
            return str(id(_get_attr(self._gm, str(node.target))))
        return f"{node.target}{fx.node.map_arg((node.args, node.kwargs), self._expression)}"

    @torch.no_grad()
    def _evaluate(self, node: Node) -> Any:
        if node.op == "get_attr":
            return _get_attr(self._gm, str(node.target))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._evaluate)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)  # a call_function's target is; narrows the type
        return node.target(*args, **kwargs)


def _is_pure_function(node: Node) -> bool:
    if node.op not in ("call_function", "call_method") or node.is_impure():
        return False
    return not any(word in str(node.target) for word in _RANDOM)


def _ancestry(node: Node) -> list[Node]:
    seen: dict[Node, None] = {}
    stack = [node]
    while stack:
        current = stack.pop()
        if current not in seen:
            seen[current] = None
            stack.extend(current.all_input_nodes)
    return list(seen)
