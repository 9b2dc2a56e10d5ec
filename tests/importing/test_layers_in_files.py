"""Layers as files write them are found, replaced, and put into the file again; awkward files come in."""

import copy
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import fxdecomp
from fxdecomp import ParityError, Policy, Ratio
from fxdecomp.export import check_parity, to_onnx
from fxdecomp.importing import from_onnx
from tests.importing.files import drawn, ints, node, write

W = drawn(32, 32) / 6
DEQUANTIZED = {"w": (W * 100).astype(np.int8), "s": np.float32(0.01), "z": np.int8(0)}
BEFORE = {
    "transposed": ([helper.make_node("Transpose", ["w"], ["v"], perm=[1, 0])], node("MatMul", "v"), {"w": W}),
    "half": (
        [helper.make_node("Cast", ["w"], ["v"], to=TensorProto.FLOAT)],
        node("Gemm", "v"),
        {"w": W.astype(np.float16)},
    ),
    "dequantized": (
        [helper.make_node("DequantizeLinear", ["w", "s", "z"], ["v"])],
        node("MatMul", "v"),
        DEQUANTIZED,
    ),
    "computed": ([helper.make_node("Cos", ["w"], ["v"])], node("MatMul", "v"), {"w": W}),
    "left": ([], helper.make_node("MatMul", ["w", "x"], ["y"]), {"w": W}),
    "gemm, left": ([], helper.make_node("Gemm", ["w", "x"], ["y"], transA=1, transB=1, alpha=0.5), {"w": W}),
    "gemm, scaled": (
        [],
        node("Gemm", "w", "b", alpha=0.5, beta=2.0, transA=1),
        {"w": W, "b": drawn(1, 32)},
    ),
    "gemm, a bias a row": ([], node("Gemm", "w", "b"), {"w": W, "b": drawn(32, 32)}),
    "gemm, one bias": ([], node("Gemm", "w", "b", transB=1), {"w": W, "b": np.float32(0.5)}),
    "einsum": ([], node("Einsum", "w", equation="bi,oi->bo"), {"w": W}),
}


def halved_and_written(path: Path, shape: tuple[int, ...] = (), method: str = "svd") -> list[str]:
    """The operators of the file that is written after every layer was replaced, without a fall-back."""
    imported = from_onnx(path, shapes=[shape] if shape else ())
    gm = fxdecomp.trace(imported.gm, imported.example_inputs)
    small = fxdecomp.transform(gm, Policy(method, Ratio(0.5), require_saving=False))
    assert fxdecomp.report(small).applied
    written = to_onnx(small, imported.example_inputs, path.with_name("b.onnx"))
    assert not [note for note in written.notes if "was not used" in note]
    return [each.op_type for each in onnx.load(path.with_name("b.onnx")).graph.node]


@pytest.mark.parametrize("name", BEFORE)
def test_a_matrix_is_found_however_it_is_written(name: str, tmp_path: Path) -> None:
    before, product, constants = BEFORE[name]
    path = write(tmp_path / "a.onnx", [*before, product], constants, shape=(32, 32))
    kinds = halved_and_written(path)
    assert not {"Einsum", "Cast", "Cos", "DequantizeLinear"} & set(kinds)  # what made the weight goes with it
    assert sum(kind in ("Gemm", "MatMul") for kind in kinds) == 2


@pytest.mark.parametrize("weight", [(1, 32, 32), (1, 1, 32, 32)])
def test_a_matrix_with_leading_ones(weight: tuple[int, ...], tmp_path: Path) -> None:
    path = write(tmp_path / "a.onnx", [node("MatMul", "w")], {"w": W.reshape(weight)}, shape=(1, 2, 3, 32))
    assert halved_and_written(path).count("MatMul") == 2
    path = write(tmp_path / "a.onnx", [node("MatMul", "w")], {"w": W.reshape(weight)}, shape=(3, 32))
    imported = from_onnx(path)  # here the weight gives the result more axes: it is no Linear
    assert not [module for module in imported.gm.modules() if isinstance(module, nn.Linear)]


@pytest.mark.parametrize("bias", [(16, 1, 1), (1, 16, 1, 1)])
def test_a_bias_behind_a_convolution(bias: tuple[int, ...], tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Add", ["b", "a"], ["c"]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    path = write(tmp_path / "a.onnx", nodes, {"w": drawn(16, 4, 3, 3), "b": drawn(*bias)})
    (layer,) = (module for module in from_onnx(path).gm.modules() if isinstance(module, nn.Conv2d))
    assert layer.bias is not None
    assert halved_and_written(path, method="spatial_svd") == ["Conv", "Conv", "Relu"]


@pytest.mark.parametrize("added", [(4, 6), (6,), (1,), ()])
def test_what_only_looks_like_a_bias_stays(added: tuple[int, ...], tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Add", ["a", "b"], ["y"])]
    path = write(tmp_path / "a.onnx", nodes, {"w": drawn(16, 4, 3, 3), "b": np.float32(drawn(*added))})
    (layer,) = (module for module in from_onnx(path).gm.modules() if isinstance(module, nn.Conv2d))
    assert layer.bias is None
    assert halved_and_written(path, method="spatial_svd") == ["Conv", "Conv", "Add"]


def test_a_weight_that_two_layers_share_with_other_strides(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "w"], ["y"], strides=[2, 2]),
    ]
    path = write(tmp_path / "a.onnx", nodes, {"w": drawn(4, 4, 3, 3)})
    assert halved_and_written(path, method="spatial_svd") == ["Conv"] * 4


@pytest.mark.parametrize(
    "how",
    [{"pads": [0, 0, 1, 1]}, {"pads": [1, 0, 0, 2]}, {"auto_pad": "SAME_LOWER"}, {"output_shape": [16, 16]}],
    ids=str,
)
def test_uneven_padding_of_a_transposed_convolution(how: dict[str, object], tmp_path: Path) -> None:
    layer = node("ConvTranspose", "w", strides=[2, 2], **how)
    path = write(tmp_path / "a.onnx", [layer], {"w": drawn(4, 8, 3, 3)}, shape=(1, 4, 8, 8))
    assert not from_onnx(path).carried
    kinds = halved_and_written(path, method="spatial_svd")
    assert kinds.count("ConvTranspose") == 2


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
def test_padding_that_follows_an_open_size(mode: str, tmp_path: Path) -> None:
    conv = node("Conv", "w", auto_pad=mode, strides=[2, 3])
    path = write(tmp_path / "a.onnx", [conv], {"w": drawn(8, 4, 3, 4)}, shape=("n", 4, "h", "w"))
    imported = from_onnx(path, shapes=[(1, 4, 8, 9)])
    assert not imported.carried
    assert tuple(imported.gm(torch.zeros(2, 4, 7, 12)).shape) == (2, 8, 4, 4)


def test_padding_that_is_computed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ConstantOfShape", ["four"], ["z"], value=helper.make_tensor("v", 7, [1], [0])),
        helper.make_node("Concat", ["some", "z"], ["p"], axis=0),
        helper.make_node("Reshape", ["p", "pairs"], ["p2"]),
        helper.make_node("Slice", ["p2", "last", "least", "first", "last"], ["p3"]),
        helper.make_node("Transpose", ["p3"], ["p4"], perm=[1, 0]),
        helper.make_node("Reshape", ["p4", "last"], ["pads"]),
        helper.make_node("Pad", ["x", "pads"], ["xp"]),
        helper.make_node("Conv", ["xp", "w"], ["y"]),
    ]
    constants = {"four": ints(4), "some": ints(1, 2, 3, 0), "pairs": ints(-1, 2), "last": ints(-1)}
    constants |= {"least": ints(-(2**63) + 1), "first": ints(0), "w": drawn(8, 4, 3, 3)}
    path = write(tmp_path / "a.onnx", nodes, constants)
    assert not from_onnx(path).carried


def test_a_condition_and_a_range_of_a_shape(tmp_path: Path) -> None:
    squeezed = helper.make_tensor_value_info("t", TensorProto.FLOAT, None)
    kept = helper.make_tensor_value_info("e", TensorProto.FLOAT, None)
    then = helper.make_graph([helper.make_node("Squeeze", ["c", "two"], ["t"])], "then", [], [squeezed])
    other = helper.make_graph([helper.make_node("Identity", ["c"], ["e"])], "else", [], [kept])
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Shape", ["c"], ["s"]),
        helper.make_node("Gather", ["s", "two0"], ["n"], axis=0),
        helper.make_node("Equal", ["n", "one"], ["q"]),
        helper.make_node("If", ["q"], ["d"], then_branch=then, else_branch=other),
        helper.make_node("Range", ["zero", "n", "one"], ["r"]),
        helper.make_node("Cast", ["r"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["d", "f"], ["y"]),
    ]
    constants = {"two0": np.asarray(2), "one": np.asarray(1), "zero": np.asarray(0), "two": ints(2)}
    path = write(tmp_path / "a.onnx", nodes, constants | {"w": drawn(16, 8, 3)}, shape=("n", 8, "t"))
    assert from_onnx(path, shapes=[(1, 8, 3)]).carried == ()
    assert halved_and_written(path, (1, 8, 3), "channel_svd")[:2] == ["Conv", "Conv"]
    assert onnx.load(tmp_path / "b.onnx").graph.input[0].type.tensor_type.shape.dim[2].dim_param == "t"


def test_a_rank_that_onnx_loses_at_a_reshape(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Shape", ["c"], ["s"]),
        helper.make_node("Cast", ["s"], ["i"], to=TensorProto.INT32),
        helper.make_node("Slice", ["i", "zero", "two", "zero", "one"], ["j"]),
        helper.make_node("Cast", ["j"], ["k"], to=TensorProto.INT64),
        helper.make_node("Concat", ["k", "minus"], ["to"], axis=0),
        helper.make_node("Reshape", ["c", "to"], ["f"]),
        helper.make_node("Shape", ["f"], ["g"]),
        helper.make_node("Slice", ["g", "zero", "one"], ["h"]),
        helper.make_node("Concat", ["h", "minus"], ["to2"], axis=0),
        helper.make_node("Reshape", ["f", "to2"], ["y"]),
    ]
    constants = {"zero": ints(0), "one": ints(1), "two": ints(2), "minus": ints(-1), "w": drawn(8, 3, 3, 3)}
    path = write(tmp_path / "a.onnx", nodes, constants, shape=("n", 3, "h", "w"))
    imported = from_onnx(path, shapes=[(1, 3, 8, 9)])
    assert imported.carried == ()


def test_a_sigmoid_near_zero_is_not_something_else(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["a"]), helper.make_node("Sigmoid", ["a"], ["y"])]
    constants = {"w": drawn(16, 4, 1, 1) / 4, "b": np.full(16, -16.0, np.float32)}
    path = write(tmp_path / "a.onnx", nodes, constants, shape=(1, 4, 16, 16))
    imported = from_onnx(path)
    other = copy.deepcopy(imported.gm)  # half as much again, as rounding makes of these in single precision
    next(each for each in other.modules() if isinstance(each, nn.Conv2d)).bias.data += math.log(1.5)
    with pytest.raises(ParityError, match=r"tolerance 0\.0001 for float32"):
        check_parity(other, path, [imported.example_inputs])


def test_whole_numbers_are_drawn_over_the_range_that_the_file_shows(tmp_path: Path) -> None:
    gather = helper.make_node("Gather", ["table", "i"], ["y"])
    nodes = [helper.make_node("Unsqueeze", ["x", "axis"], ["i"]), gather]
    constants = {"table": drawn(257, 4), "axis": ints(0)}
    path = write(tmp_path / "a.onnx", nodes, constants, shape=(1, 256), kind=TensorProto.INT32)
    (example,) = from_onnx(path).example_inputs
    assert 200 < int(example.max()) <= 256
    cast = node("Cast", to=TensorProto.FLOAT)
    path = write(tmp_path / "a.onnx", [cast], shape=(1, 256), kind=TensorProto.UINT8)
    assert int(from_onnx(path).example_inputs[0].max()) > 200


def test_a_quantised_file_is_called_that(tmp_path: Path) -> None:
    scales = {"s": np.float32(0.1), "z": np.uint8(0), "ws": np.float32(0.01), "wz": np.int8(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("QLinearMatMul", ["q", "s", "z", "w", "ws", "wz", "s", "z"], ["p"]),
        helper.make_node("DequantizeLinear", ["p", "s", "z"], ["y"]),
    ]
    constants = scales | {"w": (W * 100).astype(np.int8)}
    imported = from_onnx(write(tmp_path / "a.onnx", nodes, constants, shape=(4, 32)))
    assert imported.carried == ("QuantizeLinear, QLinearMatMul, DequantizeLinear",)
    gm = fxdecomp.trace(imported.gm, imported.example_inputs)
    notes = " ".join(fxdecomp.report(gm).record.notes)
    assert "the file is quantised already: 3 nodes (DequantizeLinear, QLinearMatMul, QuantizeLinear)" in notes
    assert "runs in ONNX Runtime" in notes
