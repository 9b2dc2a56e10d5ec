"""Operators with attributes that few files have, old operator sets, and names that Python does not take."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from fxdecomp.importing import from_onnx


@pytest.mark.parametrize("names", [("in",), ("self",), ("a.1", "a_1")])
def test_inputs_have_names_that_python_takes(names: tuple[str, ...], tmp_path: Path) -> None:
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (2, 4)) for name in names]
    adding = helper.make_node("Add", [names[0], names[-1]], ["y"])
    graph = helper.make_graph([adding], "test", inputs, [helper.make_empty_tensor_value_info("y")])
    path = tmp_path / "a.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    assert from_onnx(path).input_names == names
