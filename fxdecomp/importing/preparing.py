"""An ONNX file made ready to be converted: one operator set, constants folded, shapes known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from fxdecomp.export.exporter import silence

_OPSET = 13
"""Older files are brought to this operator set first."""

_IR_VERSION = 8
"""Older ones want weights among the inputs, and have no local functions."""

_FOLDED = frozenset(
    {
        *("Add", "Cast", "Concat", "Div", "Flatten", "Gather", "Identity", "Mul", "Neg"),
        *("Reciprocal", "Reshape", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze"),
    }
)
"""What makes a weight of a constant: computed however large it is, where onnxscript goes by size."""

_LARGEST_FILL = 1 << 22
_LARGEST = 1 << 40


def prepared(
    proto: Any,
    shapes: Mapping[str, tuple[int | None, ...]] | None = None,
    ranks: Mapping[str, int] | None = None,
    *,
    is_changed: bool = True,
) -> Any:
    """The file as an `onnx_ir.Model`: constants folded, shapes known, operators of a recent set if possible.

    Args:
        proto: An `onnx.ModelProto`, changed in place.
        shapes: Lengths of the axes of inputs, None for those that stay open.
        ranks: Numbers of axes of values inside, where they are known from elsewhere.
        is_changed: Whether operators are brought to a recent set, constants folded, and shapes inferred.
    """
    import onnx_ir
    from onnx import version_converter

    proto.ir_version = max(proto.ir_version, _IR_VERSION)
    _fix_inputs(proto.graph, shapes or {})
    opset = next((item.version for item in proto.opset_import if item.domain in ("", "ai.onnx")), _OPSET)
    if opset < _OPSET and is_changed:
        with suppress(Exception):  # an operator that it does not know, and so on: the file stays as it is
            proto = version_converter.convert_version(proto, _OPSET)
            if opset < 11:
                _keep_old_resizing(proto.graph)
    if is_changed:
        model = _folded(onnx_ir.from_proto(_with_shapes(proto)))
    else:
        del proto.graph.value_info[:]
        model = onnx_ir.from_proto(proto)
    for node in model.graph:
        for value in node.outputs:
            if value.shape is None and ranks and value.name in ranks:
                value.shape = onnx_ir.Shape([None] * ranks[value.name])
    return model


def _folded(model: Any) -> Any:
    """The model with its constants folded, as it is where that fails."""
    import onnx_ir
    from onnxscript import optimizer

    proto = onnx_ir.to_proto(model)
    try:
        with silence():
            optimizer.fold_constants(model, output_size_limit=_LARGEST, should_fold=_is_folded)
        optimizer.remove_unused_nodes(model)
        return onnx_ir.from_proto(_with_shapes(onnx_ir.to_proto(model)))
    except Exception:  # noqa: BLE001 - what it does not foresee is left as it is
        return onnx_ir.from_proto(proto)


def _fix_inputs(graph: Any, shapes: Mapping[str, tuple[int | None, ...]]) -> None:
    """State lengths of axes; weights that older files list among the inputs are none."""
    constants = {item.name for item in graph.initializer}
    inputs = [item for item in graph.input if item.name not in constants]
    for item in inputs:
        lengths = shapes.get(item.name)
        if lengths is None or not item.type.HasField("tensor_type"):
            continue
        dims = item.type.tensor_type.shape.dim
        if not item.type.tensor_type.HasField("shape"):
            for _ in lengths:
                dims.add()
        for dim, length in zip(dims, lengths, strict=False):
            if length is not None:
                dim.dim_value = length
    if len(inputs) < len(graph.input):
        del graph.input[:]
        graph.input.extend(inputs)


def _with_shapes(proto: Any) -> Any:
    """The model with the shapes that onnx finds, as it is where it finds none."""
    import onnx

    if proto.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF:
        return proto
    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception:  # noqa: BLE001 - shapes only help
        return proto


def _is_folded(node: Any) -> bool | None:
    """Whether a node of constants is computed now; None leaves it to its size."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in ("ConstantOfShape", "Expand"):
        value = node.inputs[-1].const_value if node.inputs[-1] is not None else None
        small = value is not None and math.prod(map(int, np.atleast_1d(value.numpy()))) <= _LARGEST_FILL
        return True if small else None
    return True if node.op_type in _FOLDED else None


def _keep_old_resizing(graph: Any) -> None:
    """Say how resizing rounded before operator set 11: onnx's converter leaves it to the new defaults."""
    import onnx

    meant = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    for node in graph.node:
        if node.op_type == "Resize":
            others = [item for item in node.attribute if item.name not in meant]
            del node.attribute[:]
            node.attribute.extend(others + [onnx.helper.make_attribute(*item) for item in meant.items()])
