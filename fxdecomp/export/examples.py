"""Example inputs: checked, resized along the batch, and drawn anew from a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import _PyTreeCodeGen
from torch.utils import _pytree as pytree

from fxdecomp.errors import ExportError, TraceError
from fxdecomp.graphs.inputs import ExampleInputs, has_batch, placeholder_values
from fxdecomp.graphs.origins import origin_of


def flat_graph(gm: GraphModule) -> GraphModule:
    """The graph as a module that takes its placeholders' values in order; the same tensors, the same nodes.

    Graphs of `torch.export` take and give nested structures; this one takes and gives tensors, a dictionary
    of them where the outputs have names: `{"boxes": [a, b]}` gives `boxes_0` and `boxes_1`. Outputs that are
    no tensors, such as sizes, are left out, see `other_outputs`.
    """
    if origin_of(gm) is not None:
        return gm
    codegen = gm.graph._codegen
    nested = _outputs(gm)
    leaves = pytree.tree_leaves(nested)
    tensors = [leaf for leaf in leaves if _is_tensor(leaf)]
    plain = not isinstance(codegen, _PyTreeCodeGen) and len(tensors) == len(leaves)
    if plain and not (isinstance(nested, Mapping) and len(nested) < len(leaves)):
        return gm
    graph = Graph()
    copies: dict[Node, Node] = {}
    graph.graph_copy(gm.graph, copies)
    named = _named(nested) if isinstance(nested, Mapping) else {}
    if named:
        outputs: Any = {name: copies[leaf] for name, leaf in named.items()}
    else:
        kept = [copies[leaf] for leaf in tensors]
        outputs = kept[0] if len(kept) == 1 else tuple(kept)
    graph.output(outputs)
    return GraphModule(gm, graph)


def other_outputs(gm: GraphModule) -> tuple[str, ...]:
    """The outputs of a graph that are no tensors, by their place in what it gives; a file has them all."""
    if origin_of(gm) is not None:
        return ()
    paths = pytree.tree_flatten_with_path(_outputs(gm))[0]
    return tuple(pytree.keystr(path) for path, leaf in paths if not _is_tensor(leaf))


def _outputs(gm: GraphModule) -> Any:
    """What a graph gives, nodes in the structure that its caller gets."""
    outputs = gm.graph.find_nodes(op="output")[0].args[0]
    codegen = gm.graph._codegen
    spec = codegen.pytree_info.out_spec if isinstance(codegen, _PyTreeCodeGen) else None
    if spec is not None and isinstance(outputs, tuple | list) and spec.num_leaves == len(outputs):
        return pytree.tree_unflatten(outputs, spec)
    return outputs


def _is_tensor(leaf: Any) -> bool:
    """Whether an output is a tensor, or may be one where the graph has no recorded shapes."""
    if not isinstance(leaf, Node):
        return False
    recorded = any(
        "tensor_meta" in node.meta or "val" in node.meta for node in leaf.graph.find_nodes(op="placeholder")
    )
    return not recorded or "tensor_meta" in leaf.meta or isinstance(leaf.meta.get("val"), Tensor)


def _named(nested: Any) -> dict[str, Node]:
    """The tensors by the keys on the way to them; none where two would be called alike."""
    found: dict[str, Node] = {}
    paths = [(path, leaf) for path, leaf in pytree.tree_flatten_with_path(nested)[0] if _is_tensor(leaf)]
    for path, leaf in paths:
        keys = (getattr(part, "key", getattr(part, "idx", getattr(part, "name", ""))) for part in path)
        found["_".join(map(str, keys))] = leaf
    return found if len(found) == len(paths) else {}


def as_inputs(gm: GraphModule, example_inputs: ExampleInputs) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
    """The names of a graph's inputs and one tensor for each.

    Args:
        gm: The graph whose placeholders are fed.
        example_inputs: A tensor, a tuple or a dict, as the network takes them.

    Returns:
        Names and tensors, of equal length; inputs at the end that are left to their defaults are not among
        them.

    Raises:
        ExportError: If the inputs do not fit the placeholders, or are no tensors.
    """
    names = [str(node.target) for node in gm.graph.nodes if node.op == "placeholder"]
    try:
        values = placeholder_values(gm, example_inputs)
    except TraceError as error:
        raise ExportError(str(error)) from error
    if origin_of(gm) is not None:  # a file takes sequences and text as well
        return tuple(names), tuple(values)
    while values and not isinstance(values[-1], Tensor):
        values.pop()
    for name, value in zip(names, values, strict=False):
        if not isinstance(value, Tensor):
            raise ExportError(
                f"input {name!r} is a {type(value).__name__}, wanted a Tensor; "
                "bind other arguments in a wrapper module before tracing"
            )
    if not values:
        raise ExportError("the example inputs hold no tensor; give one for each input")
    return tuple(names[: len(values)]), tuple(values)


def with_batch(inputs: Sequence[Tensor], batch: int) -> tuple[Tensor, ...]:
    """The inputs with their rows repeated, or cut off, to the given batch size."""
    return tuple(
        value[torch.arange(batch, device=value.device) % value.shape[0]] if batched else value
        for value, batched in zip(inputs, has_batch(inputs), strict=True)
    )


def resized(inputs: Sequence[Tensor], axes: Mapping[int, int]) -> tuple[Tensor, ...]:
    """The inputs with their content repeated, or cut off, to other lengths along axes after the first.

    Args:
        inputs: The inputs; those without the axes stay as they are.
        axes: Axis -> length.
    """
    values = list(inputs)
    for axis, length in axes.items():
        for index, value in enumerate(values):
            if isinstance(value, Tensor) and value.ndim > axis:
                positions = torch.arange(length, device=value.device) % value.shape[axis]
                values[index] = value.index_select(axis, positions)
    return tuple(values)
