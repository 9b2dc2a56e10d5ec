"""ONNX files that are valid and unlike what PyTorch's exporter writes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fxdecomp.errors import ExportError
from fxdecomp.importing import from_onnx
from tests.importing.files import drawn, write


def test_a_weight_and_its_transpose_are_two_linears(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"], "encode"),
        helper.make_node("Gemm", ["a", "w"], ["y"], "decode", transB=1),
    ]
    gm = from_onnx(write(tmp_path / "a.onnx", nodes, {"w": drawn(8, 8)}, shape=(2, 8))).gm
    assert [n.target for n in gm.graph.nodes if n.op == "call_module"] == ["encode", "decode"]


@pytest.mark.parametrize("rows", [2, 1])
def test_whole_numbers_are_not_all_zero_where_the_file_takes_others(rows: int, tmp_path: Path) -> None:
    lookup = helper.make_node("Gather", ["table", "x"], ["y"])
    path = write(
        tmp_path / "a.onnx", [lookup], {"table": drawn(rows, 3)}, shape=(4, 5), kind=TensorProto.INT64
    )
    (example,) = from_onnx(path).example_inputs
    assert set(np.unique(example)) == set(range(rows))


def test_normalisations_without_node_names_are_told_apart(tmp_path: Path) -> None:
    constants = {name: np.abs(drawn(4, seed=seed)) + 0.1 for seed, name in enumerate("sbmvSBMV")}
    nodes = [
        helper.make_node("BatchNormalization", ["x", *"sbmv"], ["h"]),
        helper.make_node("BatchNormalization", ["h", *"SBMV"], ["k"]),
        helper.make_node("BatchNormalization", ["k", *"sbmv"], ["y"]),
    ]
    gm = from_onnx(write(tmp_path / "a.onnx", nodes, constants)).gm
    first, second, again = (n.target for n in gm.graph.nodes if n.op == "call_module")
    assert first == again != second


@pytest.mark.parametrize(
    ("sites", "paths"),
    [
        (["block/fc", "block", "block/out"], ["block.fc", "block_1", "block.out"]),
        (["block", "block/fc", "block/out"], ["block", "block_1.fc", "block_1.out"]),
    ],
)
def test_a_layer_and_a_container_of_one_name_are_both_kept(
    sites: list[str], paths: list[str], tmp_path: Path
) -> None:
    values = ["x", "a", "b", "y"]
    nodes = [
        helper.make_node("MatMul", [values[i], f"w{i}"], [values[i + 1]], f"/{site}/MatMul")
        for i, site in enumerate(sites)
    ]
    weights = {f"w{i}": drawn(8, 8, seed=i) for i in range(3)}
    gm = from_onnx(write(tmp_path / "a.onnx", nodes, weights, shape=(2, 8))).gm
    assert [n.target for n in gm.graph.nodes if n.op == "call_module"] == paths


def test_shapes_are_taken_as_they_are_given(tmp_path: Path) -> None:
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (name, 4)) for name in "ab"]
    output = helper.make_empty_tensor_value_info("y")
    join = helper.make_node("Concat", ["a", "b"], ["y"], axis=0)
    graph = helper.make_graph([join], "test", inputs, [output])
    path = tmp_path / "a.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    assert [tuple(x.shape) for x in from_onnx(path, shapes=[(2, 4), (3, 4)]).example_inputs] == [
        (2, 4),
        (3, 4),
    ]
    with pytest.raises(ExportError, match=r"input 'b' of .* has shape \['b', 4\]; \(3, 5\) was given"):
        from_onnx(path, shapes=[(2, 4), (3, 5)])


@pytest.mark.parametrize(
    ("kind", "only", "constant"),
    [
        (TensorProto.INT32, helper.make_node("ReduceSum", ["x", "c"], ["y"]), np.asarray([1])),
        (TensorProto.INT64, helper.make_node("Pow", ["x", "c"], ["y"]), np.float32(2)),
    ],
    ids=["sum", "power"],
)
def test_whole_numbers_keep_their_type(
    kind: int, only: onnx.NodeProto, constant: np.ndarray, tmp_path: Path
) -> None:
    imported = from_onnx(write(tmp_path / "a.onnx", [only], {"c": constant}, shape=(4, 5), kind=kind))
    (example,) = imported.example_inputs
    assert imported.gm(example).dtype == example.dtype
