"""Constants of a graph: stored tensors, and values computed from stored tensors alone.

A functional layer takes its weight from a get_attr node, often through a transposition, and sometimes through
arithmetic (weight standardisation, a parametrisation that was traced through). Such a weight is materialised.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import GraphModule, Node
from torch.fx.graph_module import _get_attr

_RANDOM = re.compile(
    r"rand|dropout|bernoulli|multinomial|gumbel|rrelu|poisson|binomial|fractional_max_pool|scaled_dot|^normal$"
)
"""Names of functions that draw numbers, apart from those that do so in place."""
_WRITERS = {operator.setitem} | {
    getattr(operator, name)
    for name in dir(operator)
    if name.startswith("i") and f"__{name[1:]}__" in dir(operator)
}
"""`operator.iadd` and its like, which change their first argument."""


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """A value that does not depend on the graph's inputs.

    Attributes:
        value: The tensor.
        path: Qualified name of the stored tensor, None where several went into the value.
        roots: Identities of the stored tensors.
        expression: What is computed from them; equal expressions have equal values.
        trains: Whether gradients are wanted for any of them.
    """

    value: Tensor
    path: str | None
    roots: frozenset[int]
    expression: str
    trains: bool


class Constants:
    """The constant nodes of one graph, found in one walk. Cost: linear in the number of nodes."""

    def __init__(self, gm: GraphModule) -> None:
        self._gm = gm
        self._nodes = _constant_nodes(gm, frozenset())
        written = {part for node in gm.graph.nodes for part in self._changed_by(node)}
        if written:
            self._nodes = _constant_nodes(gm, written)
        self._expressions: dict[Node, str] = {}
        self._known: dict[str, int] = {}

    def __contains__(self, node: Node) -> bool:
        """Whether a node's value depends on neither an input nor chance."""
        return node in self._nodes

    def of(self, node: object) -> Constant | None:
        """The constant that a node stands for, None where its value depends on an input or on chance."""
        if not isinstance(node, Node) or node not in self._nodes:
            return None
        nodes = sorted(_ancestry(node), key=self._nodes.__getitem__)
        stored = [n for n in nodes if n.op == "get_attr"]
        tensors = [_get_attr(self._gm, str(n.target)) for n in stored]
        if not all(isinstance(tensor, Tensor) for tensor in tensors):
            return None
        value = self._evaluate(nodes)
        if not isinstance(value, Tensor):
            return None
        paths = {str(n.target) for n in stored}
        path = paths.pop() if len(paths) == 1 else None
        trains = any(tensor.requires_grad for tensor in tensors)
        return Constant(value, path, frozenset(map(id, tensors)), self._expression(nodes), trains)

    def consumers(self, node: Node) -> Iterator[Node]:
        """The nodes that use a constant in earnest: its users, through users that are constant themselves."""
        waiting, seen = [node], {node}
        while waiting:
            for user in waiting.pop().users:
                if user in seen:
                    continue
                seen.add(user)
                if user in self._nodes:
                    waiting.append(user)
                else:
                    yield user

    def _changed_by(self, node: Node) -> list[Node]:
        """The constant that a call changes, with all that this is computed from."""
        if node.op not in ("call_function", "call_method") or not writes(node):
            return []
        changed = node.kwargs.get("out", node.args[0] if node.args else None)
        return _ancestry(changed) if isinstance(changed, Node) and changed in self._nodes else []

    def _expression(self, nodes: list[Node]) -> str:
        """What the last of the nodes computes; slices of one tensor have the same roots and shape, not this.

        Every expression has a number, by which those that contain it name it: written out, they would grow
        without bound.
        """
        for node in nodes:
            if node in self._expressions:
                continue
            if node.op == "get_attr":
                written = f"tensor {id(_get_attr(self._gm, str(node.target)))}"
            else:
                arguments = fx.node.map_arg((node.args, node.kwargs), self._expressions.__getitem__)
                written = f"{node.target}{arguments}"
            self._expressions[node] = f"#{self._known.setdefault(written, len(self._known))}"
        return self._expressions[nodes[-1]]

    @torch.no_grad()
    def _evaluate(self, nodes: list[Node]) -> Any:
        values: dict[Node, Any] = {}
        for node in nodes:
            if node.op == "get_attr":
                values[node] = _get_attr(self._gm, str(node.target))
                continue
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            if node.op == "call_method":
                values[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            else:
                assert callable(node.target)  # a call_function's target is; narrows the type
                values[node] = node.target(*args, **kwargs)
        return values[nodes[-1]]


def changes_stored_tensors(gm: GraphModule) -> bool:
    """Whether running a graph changes tensors that it stores, in a call of its own: `self.w.clamp_(0, 1)`."""
    free: set[Node] = set()
    for node in gm.graph.nodes:
        called = node.op in ("call_function", "call_method")
        if node.op == "get_attr" or (called and free.issuperset(node.all_input_nodes)):
            free.add(node)
        changed = node.kwargs.get("out", node.args[0] if node.args else None)
        if called and writes(node) and isinstance(changed, Node) and changed in free:
            return True
    return False


def _is_pure_function(node: Node) -> bool:
    if node.op not in ("call_function", "call_method") or node.is_impure() or writes(node):
        return False
    tags = getattr(node.target, "tags", ())
    name = getattr(node.target, "__name__", str(node.target))
    return torch.Tag.nondeterministic_seeded not in tags and not _RANDOM.search(name)


def writes(node: Node) -> bool:
    """Whether a call changes one of its arguments."""
    schema = getattr(node.target, "_schema", None)
    if schema is not None:
        return bool(schema.is_mutable)
    name = getattr(node.target, "__name__", str(node.target))
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or node.target in _WRITERS or "out" in node.kwargs or node.kwargs.get("inplace") is True


def _constant_nodes(gm: GraphModule, besides: Collection[Node]) -> dict[Node, int]:
    """The nodes that nothing but stored tensors goes into, but for those named, by their places."""
    found: dict[Node, int] = {}
    for place, node in enumerate(gm.graph.nodes):
        inputs = node.all_input_nodes
        computed = bool(inputs) and found.keys() >= set(inputs) and _is_pure_function(node)
        if (node.op == "get_attr" or computed) and node not in besides:
            found[node] = place
    return found


def _ancestry(node: Node) -> list[Node]:
    seen: dict[Node, None] = {}
    stack = [node]
    while stack:
        current = stack.pop()
        if current not in seen:
            seen[current] = None
            stack.extend(current.all_input_nodes)
    return list(seen)
