"""`Walk`: one run of a graph on one batch that stops where it is told and goes on later."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch.fx import GraphModule, Node

from fxdecomp.graphs.untouched import copied


class Walk:
    """Runs a graph node by node; values that nothing needs any more are dropped.

    Values are read when the node that takes them is about to run, so that a later in-place operation
    does not change what was read.
    """

    def __init__(self, gm: GraphModule, values: list[Any]) -> None:
        """Start before the first node.

        Args:
            gm: The graph, in eval mode.
            values: One value per placeholder.
        """
        self._interpreter = fx.Interpreter(gm)
        self._interpreter.args_iter = iter(copied(values))  # the graph may change its input in place
        self._nodes = list(gm.graph.nodes)
        self._places = {node.name: place for place, node in enumerate(self._nodes)}
        self._next = 0

    def go_before(self, name: str) -> None:
        """Run all nodes before the one of a name."""
        while self._nodes[self._next].name != name:
            self._run_next()

    def has_still(self, name: str) -> bool:
        """Whether the node of a name is still to be run."""
        return self._places[name] >= self._next

    @torch.no_grad()
    def _run_next(self) -> Any:
        interpreter, node = self._interpreter, self._nodes[self._next]
        interpreter.env[node] = value = interpreter.run_node(node)
        for spent in interpreter.user_to_last_uses.get(node, ()):
            del interpreter.env[spent]
        self._next += 1
        return value

    def value_of(self, node: Node) -> Any:
        """The value of a node that has run and is still needed."""
        return self._interpreter.env[self._named(node)]

    def go_past(self, name: str) -> Any:
        """Run the node of a name, after those before it, and return its value."""
        self.go_before(name)
        return self._run_next()

    def fork(self) -> Walk:
        """Another walk from the present place on, whose operations in place leave this one's values."""
        other = copy.copy(self)
        other._interpreter = copy.copy(self._interpreter)
        memo: dict[int, Any] = {}  # one for all: views of one tensor stay views of one tensor

        def own(value: Tensor) -> Tensor:
            return copy.deepcopy(value.detach(), memo)

        other._interpreter.env = {
            node: value if node.op == "get_attr" else pytree.tree_map_only(Tensor, own, value)
            for node, value in self._interpreter.env.items()
        }
        return other

    def finish(self, changed: Callable[[str, Any], Any]) -> Any:
        """Run the other nodes and return what the graph returns.

        Args:
            changed: Gives what is to be taken for the value of a node, by the node's name.
        """
        value = None
        while self._next < len(self._nodes):
            node = self._nodes[self._next]
            value = self._run_next()
            if node in self._interpreter.env:
                self._interpreter.env[node] = changed(node.name, value)
        return value

    def live_bytes(self) -> int:
        """Memory of the values that are kept."""
        leaves = pytree.tree_leaves(list(self._interpreter.env.values()))
        storages = {leaf.data_ptr(): leaf for leaf in leaves if isinstance(leaf, Tensor)}
        return sum(leaf.numel() * leaf.element_size() for leaf in storages.values())

    def _named(self, node: Node) -> Node:
        return next(own for own in self._interpreter.env if own.name == node.name)
