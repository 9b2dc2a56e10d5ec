"""An ONNX file made ready to be converted: one operator set, constants folded, shapes known."""

from __future__ import annotations

from typing import Any

from fxdecomp.errors import ExportError

_OPSET = 13
"""Older files are brought to this operator set first."""


def prepared(proto: Any, name: str) -> Any:
    """The file as an `onnx_ir.Model`, constants folded, in a recent operator set, with shapes.

    Args:
        proto: An `onnx.ModelProto`.
        name: What the file is called.

    Raises:
        ExportError: It cannot be brought to a recent operator set.
    """
    import onnx
    import onnx_ir
    from onnx import version_converter
    from onnxscript import optimizer

    opset = next((item.version for item in proto.opset_import if item.domain in ("", "ai.onnx")), _OPSET)
    if opset < _OPSET:
        try:
            proto = version_converter.convert_version(proto, _OPSET)
        except Exception as error:
            raise ExportError(
                f"{name} is of operator set {opset} and cannot be brought to {_OPSET}: {error}"
            ) from error
    if opset < 11:
        _keep_old_resizing(proto.graph)
    if proto.ByteSize() < onnx.checker.MAXIMUM_PROTOBUF:
        proto = onnx.shape_inference.infer_shapes(proto)
    model = onnx_ir.from_proto(proto)
    optimizer.fold_constants(model)
    optimizer.remove_unused_nodes(model)
    return model


def _keep_old_resizing(graph: Any) -> None:
    """Say how resizing rounded before operator set 11: onnx's converter leaves it to the new defaults."""
    import onnx

    meant = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    for node in graph.node:
        if node.op_type == "Resize":
            others = [item for item in node.attribute if item.name not in meant]
            del node.attribute[:]
            node.attribute.extend(others + [onnx.helper.make_attribute(*item) for item in meant.items()])
