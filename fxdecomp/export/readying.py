"""Files of others made ready for lower precisions: ONNX Runtime's tools want names of nodes, and new ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fxdecomp.errors import ExportError, first_line

_OPSET = 13
"""The first in which a weight is quantised channel by channel."""
_IR_VERSION = 8


def make_ready(path: Path) -> None:
    """Give every node of a file a name of its own, and bring it to an operator set that has int8.

    Args:
        path: An ONNX file, rewritten.

    Raises:
        ExportError: onnx cannot bring the file to a newer operator set.
    """
    import onnx
    from onnx import version_converter

    proto = onnx.load(str(path))
    constants = {item.name for item in proto.graph.initializer}
    inputs = [item for item in proto.graph.input if item.name not in constants]
    if len(inputs) < len(proto.graph.input):
        del proto.graph.input[:]
        proto.graph.input.extend(inputs)
    found = (item.version for item in proto.opset_import if item.domain in ("", "ai.onnx"))
    opset = next(found, _OPSET)
    proto.ir_version = max(proto.ir_version, _IR_VERSION)
    if opset < _OPSET:
        props = list(proto.metadata_props)
        try:
            proto = version_converter.convert_version(proto, _OPSET)
        except Exception as error:
            raise ExportError(
                f"the file is of operator set {opset}, lower precisions need {_OPSET}, and onnx cannot bring "
                f"it there: {first_line(error)}; export without quantize"
            ) from error
        del proto.metadata_props[:]
        proto.metadata_props.extend(props)
    _name_nodes(proto.graph)
    external = f"{path.name}.data" if path.with_name(f"{path.name}.data").exists() else None
    if external is not None:
        path.with_name(external).unlink()
    onnx.save_model(proto, str(path), save_as_external_data=external is not None, location=external)


def _name_nodes(graph: Any) -> None:
    """Give each node a name that no other has."""
    taken: set[str] = set()
    for node in graph.node:
        name = node.name or next((output for output in node.output if output), node.op_type)
        count, wanted = 0, name
        while name in taken:
            count += 1
            name = f"{wanted}_{count}"
        taken.add(name)
        node.name = name
