"""Conditions of an exported graph that are about layouts in memory alone, found out and taken back.

As torch.export computes strides it meets `rows * pixels % pixels == 0` and the like, takes one answer, and
holds the graph to it: a network of patches and attention that was traced with two rows refuses one row. The
graph itself does not depend on it, as its operators look at the layout whenever they run. A condition is
taken back where all of this holds: torch's own implementations of operators asked for it, another batch
breaks it, and there the graph computes what the network does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.utils._pytree as pytree
from torch import SymInt, Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule

from fxdecomp.graphs.inputs import Arguments, placeholder_values
from fxdecomp.tracing.guards import add_condition, conditions_of

_OPERATORS = (
    "_decomp/",
    "_ops.py",
    "_meta_registrations.py",
    "_prims/",
    "_prims_common/",
    "_refs/",
    "_subclasses/",
)
"""Where torch implements operators, those in C++ behind `_ops.py`; what a network's own code asks, `torch.nn`
included, is none of it."""

_Call = tuple[tuple[Any, ...], dict[str, Any]]


def correct_conditions(
    gm: GraphModule,
    program: ExportedProgram,
    call: _Call,
    agrees: Callable[[GraphModule, Arguments], bool],
) -> None:
    """Hold a graph to what it needs: other batches are tried on it and on the network.

    Conditions about layouts are taken back. Of a batch of one row, which torch.export takes for no size that
    is free and says nothing about, a condition is added where the graph computes something else there.

    Args:
        gm: The unlifted program; its conditions are changed.
        program: The program, fresh from `torch.export`.
        call: What the network was exported with.
        agrees: Whether a graph computes what the network does on other inputs.
    """
    for inputs in _other_batches(call):
        values = placeholder_values(gm, inputs)
        conditions = conditions_of(gm)
        broken = () if conditions is None else conditions.broken(values)
        if broken and not _are_of_operators(program, gm, values):
            continue
        if conditions is not None:
            kept = conditions.conditions
            conditions.conditions = tuple(each for each in kept if each not in broken)
        if agrees(gm, inputs):
            continue
        if conditions is not None:
            conditions.conditions = kept
        if not broken and (name := _one_row(gm, values)):
            add_condition(gm, f"{name}.shape[0] != 1")


def _one_row(gm: GraphModule, values: Sequence[Any]) -> str:
    """The first placeholder whose free batch is one row in these values; empty where there is none."""
    for node, value in zip(gm.graph.find_nodes(op="placeholder"), values, strict=True):
        known = node.meta.get("val")
        if (
            isinstance(known, Tensor)
            and known.ndim
            and isinstance(known.shape[0], SymInt)
            and len(value) == 1
        ):
            return str(node.name)
    return ""


def _other_batches(call: _Call) -> Sequence[Arguments]:
    """The call with one row, and with one more than it has, of every input that shares the batch."""
    leaves = [leaf for leaf in pytree.tree_leaves(call) if isinstance(leaf, Tensor) and leaf.ndim]
    if not leaves:
        return ()
    rows = leaves[0].shape[0]

    def call_with(batch: int) -> Arguments:
        def resized(value: Tensor) -> Tensor:
            if not value.ndim or value.shape[0] != rows:
                return value
            return value.repeat(2, *[1] * (value.ndim - 1))[:batch]

        return Arguments(*pytree.tree_map_only(Tensor, resized, call))

    return [call_with(batch) for batch in (1, rows + 1) if batch != rows and rows]


def _are_of_operators(program: ExportedProgram, gm: GraphModule, values: Sequence[Any]) -> bool:
    """Whether all that torch.export asked for and these inputs break was asked by operators themselves."""
    sizes: dict[Any, int] = {}
    environment = None
    nodes = gm.graph.find_nodes(op="placeholder")
    for node, value in zip(nodes, values, strict=True):
        known = node.meta.get("val")
        if not isinstance(known, Tensor) or not isinstance(value, Tensor):
            continue
        for symbolic, size in zip(known.shape, value.shape, strict=True):
            if isinstance(symbolic, SymInt) and symbolic.node.expr.is_Symbol:
                sizes[symbolic.node.expr] = size
                environment = symbolic.node.shape_env
    if environment is None:
        return False
    broken = [guard for guard in environment.guards if guard.expr.xreplace(sizes) == False]  # noqa: E712 - sympy's
    asked = [str(guard.sloc) for guard in broken]
    return bool(broken) and all(place.lstrip("(").startswith(_OPERATORS) for place in asked)
