"""Operators with attributes that few files have, old operator sets, and names that Python does not take."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fxdecomp.importing import from_onnx
from tests.importing.files import ints, node, write

TWICE = np.asarray([1, 1, 2, 2], np.float32)
SELDOM = {
    "gather, from the end": (node("Gather", "i", axis=1), {"i": ints(-1, 0)}),
    "unsqueeze, from the end": (node("Unsqueeze", "a"), {"a": ints(-2, -1)}),
    "pad, reflect one axis": (node("Pad", "p", mode="reflect"), {"p": ints(0, 0, 0, 2, 0, 0, 0, 2)}),
    "pad, edge of channels": (node("Pad", "p", mode="edge"), {"p": ints(0, 1, 2, 0, 0, 1, 2, 0)}),
    "resize, scales of axes": (
        node("Resize", "", "s", mode="linear", axes=[2, 3]),
        {"s": np.asarray([2, 3], np.float32)},
    ),
    "resize, size of one axis": (node("Resize", "", "", "n", mode="linear", axes=[-1]), {"n": ints(16)}),
    "flatten, all": (node("Flatten", axis=4), {}),
    "depth to space, DCR": (node("DepthToSpace", blocksize=2), {}),
    "space to depth": (node("SpaceToDepth", blocksize=2), {}),
    "celu": (node("Celu", alpha=0.7), {}),
    "threshold": (node("ThresholdedRelu", alpha=0.3), {}),
    **{op: (node(op), {}) for op in ("ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceSumSquare")},
    "norm of an axis": (node("ReduceL2", "a", keepdims=0), {"a": ints(1)}),
    "einsum": (node("Einsum", "c", equation="abcd,abce->de"), {"c": np.ones((2, 4, 6, 3), np.float32)}),
}


@pytest.mark.parametrize("name", SELDOM)
def test_seldom_attributes_compute_what_onnx_runtime_computes(name: str, tmp_path: Path) -> None:
    only, constants = SELDOM[name]
    imported = from_onnx(write(tmp_path / "a.onnx", [only], constants))
    assert len(imported.parity) == 6
    assert not imported.carried


@pytest.mark.parametrize(("op", "opset"), [("Upsample", 9), ("Resize", 10)])
def test_old_resizing_rounds_as_it_did(op: str, opset: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.onnx", [node(op, "s", mode="nearest")], {"s": TWICE}, opset=opset)
    assert len(from_onnx(path).parity) == 6


@pytest.mark.parametrize("names", [("in",), ("self",), ("a.1", "a_1")])
def test_inputs_have_names_that_python_takes(names: tuple[str, ...], tmp_path: Path) -> None:
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (2, 4)) for name in names]
    adding = helper.make_node("Add", [names[0], names[-1]], ["y"])
    graph = helper.make_graph([adding], "test", inputs, [helper.make_empty_tensor_value_info("y")])
    path = tmp_path / "a.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    assert from_onnx(path).input_names == names
