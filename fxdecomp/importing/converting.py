"""The nodes of a prepared ONNX file, one after the other, as nodes of a graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch.fx import GraphModule

from fxdecomp.errors import ExportError
from fxdecomp.importing.arranging import ARRANGING
from fxdecomp.importing.building import Builder, Unconvertible
from fxdecomp.importing.elementwise import ELEMENTWISE
from fxdecomp.importing.layers import LAYERS, Handler
from fxdecomp.importing.operands import Operands

HANDLERS: Mapping[str, Handler] = {**LAYERS, **ELEMENTWISE, **ARRANGING}


def converted(model: Any, path: str) -> GraphModule:
    """The graph of a prepared model.

    Args:
        model: An `onnx_ir.Model`.
        path: What the file is called.

    Raises:
        ExportError: A node has no counterpart.
    """
    kinds = {
        f"{node.domain}.{node.op_type}".strip(".")
        for node in model.graph
        if node.op_type != "Constant" and (node.domain not in ("", "ai.onnx") or node.op_type not in HANDLERS)
    }
    if kinds:
        raise ExportError(
            f"{path} holds operators that cannot be converted to PyTorch: {', '.join(sorted(kinds))}; "
            "give the PyTorch model instead, as package.module:callable"
        )
    builder = Builder()
    for name, value in model.graph.initializers.items():
        builder.values[name] = np.asarray(value.const_value.numpy())
    for value in model.graph.inputs:
        if value.name not in builder.values:  # older files list their weights among the inputs
            builder.placeholder(value.name)
    merged: dict[Any, str] = {}
    for node in model.graph:
        try:
            _convert(builder, node, merged)
        except Unconvertible as reason:
            raise ExportError(
                f"{path}: node {node.name or node.outputs[0].name!r} ({node.op_type}) cannot be converted to "
                f"PyTorch: {reason}; give the PyTorch model instead, as package.module:callable"
            ) from reason
    try:
        return builder.finish([value.name for value in model.graph.outputs], set(merged.values()))
    except Unconvertible as reason:
        raise ExportError(
            f"{path}: an output cannot be converted to PyTorch: {reason}; give the PyTorch model instead, as "
            "package.module:callable"
        ) from reason


def _convert(builder: Builder, node: Any, merged: dict[Any, str]) -> None:
    if node in merged:
        builder.values[node.outputs[0].name] = builder.values[merged[node]]
        return
    if node.op_type == "Constant":
        builder.values[node.outputs[0].name] = _constant(node)
        return
    found = HANDLERS[node.op_type](builder, Operands(node, builder.values, merged))
    values = found if isinstance(found, tuple) else (found,)
    for output in node.outputs[len(values) :]:
        if output.uses() or output.is_graph_output():
            raise Unconvertible(f"its output {output.name!r} is used")
    for output, value in zip(node.outputs, values, strict=False):
        builder.values[output.name] = value


def _constant(node: Any) -> Any:
    for name, attribute in node.attributes.items():
        if name == "value":
            return np.asarray(attribute.value.numpy())
        if name in ("value_int", "value_ints"):
            return np.asarray(attribute.value, np.int64)
        if name in ("value_float", "value_floats"):
            return np.asarray(attribute.value, np.float32)
    raise Unconvertible("its value is neither a tensor nor a number")
