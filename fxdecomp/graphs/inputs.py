"""Example inputs in the forms that users have them: a tensor, a tuple, a dict, or arguments of both kinds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx import GraphModule
from torch.fx._pytree import tree_flatten_spec
from torch.fx.graph import _PyTreeCodeGen

from fxdecomp.errors import FxdecompError, TraceError, first_line


@dataclass(frozen=True, slots=True, eq=False)
class Arguments:
    """Arguments of a call that takes both kinds."""

    positional: tuple[Any, ...]
    keyword: Mapping[str, Any]


pytree.register_pytree_node(
    Arguments,
    lambda call: ([call.positional, dict(call.keyword)], None),
    lambda parts, _: Arguments(*parts),
)
ExampleInputs = Tensor | Sequence[Any] | Mapping[str, Any] | Arguments


def call_arguments(inputs: ExampleInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a call: a tensor is one argument, a dict holds keywords.

    Raises:
        TraceError: The inputs are none of these.
    """
    if isinstance(inputs, Arguments):
        return inputs.positional, dict(inputs.keyword)
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if not isinstance(inputs, Tensor | Iterable) or isinstance(
        inputs, Iterator
    ):  # it could be read once only
        raise TraceError(f"inputs are a tensor, a tuple, a list or a dict, got {type(inputs).__name__}")
    return ((inputs,), {}) if isinstance(inputs, Tensor) else (tuple(inputs), {})


def placeholder_values(gm: GraphModule, inputs: ExampleInputs) -> list[Any]:
    """The value of each placeholder of a graph, in order.

    Raises:
        TraceError: The inputs do not fit the graph's placeholders.
    """
    args, kwargs = call_arguments(inputs)
    nodes = [node for node in gm.graph.nodes if node.op == "placeholder"]
    codegen = gm.graph._codegen
    if isinstance(codegen, _PyTreeCodeGen):
        values = _flat_values(codegen, args, kwargs)
    else:
        names = [str(node.target).lstrip("*") for node in nodes]
        defaults = {name: node.args[0] for name, node in zip(names, nodes, strict=True) if node.args}
        given = dict(zip(names, args, strict=False)) | kwargs
        unknown = sorted(set(kwargs) - set(names))
        missing = [name for name in names if name not in given and name not in defaults]
        if unknown or missing or len(args) > len(names):
            raise TraceError(_misfit(names, len(args), unknown, missing))
        values = [given.get(name, defaults.get(name)) for name in names]
    if len(values) != len(nodes):
        raise TraceError(f"the example inputs hold {len(values)} values, the graph takes {len(nodes)}")
    return values


def require_graph(value: object, function: str) -> None:
    """Raise where a function is not given a graph.

    Raises:
        FxdecompError: The value is something else; says how to make a graph of a network.
    """
    if not isinstance(value, GraphModule):
        raise FxdecompError(
            f"{function} takes a GraphModule, got {type(value).__name__}; use fxdecomp.trace(model, inputs)"
        )


@contextmanager
def naming_batch(batch: str, kind: type[FxdecompError]) -> Iterator[None]:
    """Name the batch where a network raises because the batch is not made for it.

    Args:
        batch: What the user knows it by, such as `calibration batch 3`.
        kind: The error to raise instead.
    """
    try:
        yield
    except (TraceError, TypeError, ValueError, IndexError, RuntimeError) as error:
        foreseen = isinstance(error, FxdecompError) and not isinstance(error, TraceError)
        if foreseen or isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error) if isinstance(error, TraceError) else first_line(error)
        raise kind(f"{batch} does not fit: {reason}; give what the network takes, without labels") from error


def has_batch(inputs: Sequence[Any]) -> tuple[bool, ...]:
    """Which inputs carry the batch: those whose first axis is as long as the first input's."""
    sizes = [value.shape[0] for value in inputs if isinstance(value, Tensor) and value.ndim]
    return tuple(
        bool(sizes) and isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == sizes[0]
        for value in inputs
    )


def float_leaves(value: object) -> list[Tensor]:
    """The floating-point tensors of a nested structure, in order."""
    leaves = pytree.tree_leaves(value)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _flat_values(codegen: _PyTreeCodeGen, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    spec = codegen.pytree_info.in_spec
    if spec is None:
        return pytree.tree_leaves((args, kwargs))
    given: tuple[Any, ...] = (args, kwargs)
    if not kwargs and not _takes_both_kinds(spec):
        given = args
    elif kwargs and spec.type is tuple and spec.num_children == 2:
        order = spec.children()[1].context or []
        if set(order) != set(kwargs):
            raise TraceError(f"the example inputs name {sorted(kwargs)}, the graph takes {sorted(order)}")
        given = (args, {name: kwargs[name] for name in order})
    leaves = pytree.tree_leaves(given)
    try:
        values = tree_flatten_spec(given, spec)  # dicts by key
    except (LookupError, TypeError, AttributeError):
        values = []
    except RuntimeError:  # a container that torch.fx has not been told of
        values = leaves
    if len(values) != len(leaves):
        raise TraceError(f"the example inputs do not have the structure that the graph takes: {spec}")
    return values


def _takes_both_kinds(spec: pytree.TreeSpec) -> bool:
    """Whether a spec is of `(args, kwargs)`, as of torch.export, or of `args` alone, as of `make_fx`."""
    return spec.type is tuple and [child.type for child in spec.children()] == [tuple, dict]


def _misfit(names: list[str], count: int, unknown: list[str], missing: list[str]) -> str:
    takes = f"the network takes ({', '.join(names)})"
    if unknown:
        return f"the example inputs name {', '.join(unknown)}; {takes}"
    if missing:
        return f"the example inputs lack {', '.join(missing)}; {takes}"
    return f"the example inputs are {count} values; {takes}"
