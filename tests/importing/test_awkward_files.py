"""ONNX files that are valid and unlike what PyTorch's exporter writes."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

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
