"""ONNX files as graphs: every operator against ONNX Runtime, names kept, and clear refusals."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

import fxdecomp
from fxdecomp import Policy
from fxdecomp.errors import ExportError
from fxdecomp.export import to_onnx
from fxdecomp.importing import building, from_onnx
from tests.export.nets import Convolutional, Recurrent, Residual, traced
from tests.importing.files import drawn, ints, node, write

ONE_NODE = {
    **{
        op: (node(op), {}) for op in ("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "HardSwish", "Mish", "Neg")
    },
    **{op: (node(op), {}) for op in ("Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Softplus")},
    **{op: (node(op), {}) for op in ("Softsign", "Tanh", "Identity", "Dropout", "Flatten", "Transpose")},
    **{op: (node(op), {}) for op in ("GlobalAveragePool", "GlobalMaxPool", "Softmax", "LogSoftmax")},
    **{op: (node(op, "c"), {"c": drawn(8)}) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum")},
    **{op: (node(op), {}) for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")},
    "conv": (
        node("Conv", "w", "b", pads=[1, 2, 1, 2], strides=[2, 1]),
        {"w": drawn(5, 4, 3, 5), "b": drawn(5)},
    ),
    "conv, uneven": (node("Conv", "w", pads=[0, 1, 2, 3]), {"w": drawn(5, 4, 3, 3)}),
    "conv, same upper": (node("Conv", "w", auto_pad="SAME_UPPER", strides=[2, 3]), {"w": drawn(5, 4, 3, 4)}),
    "conv, same lower": (node("Conv", "w", auto_pad="SAME_LOWER", strides=[1, 2]), {"w": drawn(5, 4, 2, 4)}),
    "conv, valid": (node("Conv", "w", auto_pad="VALID"), {"w": drawn(5, 4, 3, 4)}),
    "conv, groups": (node("Conv", "w", group=2), {"w": drawn(6, 2, 3, 3)}),
    "transposed": (
        node("ConvTranspose", "w", "b", strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 0], group=2),
        {"w": drawn(4, 3, 3, 3), "b": drawn(6)},
    ),
    "norm": (
        node("BatchNormalization", "s", "b", "m", "v", epsilon=1e-3),
        {"s": drawn(4), "b": drawn(4), "m": drawn(4), "v": np.abs(drawn(4)) + 0.1},
    ),
    "layer norm": (node("LayerNormalization", "s", "b", axis=-1), {"s": drawn(8), "b": drawn(8)}),
    "instance norm": (node("InstanceNormalization", "s", "b"), {"s": drawn(4), "b": drawn(4)}),
    "group norm": (node("GroupNormalization", "s", "b", num_groups=2), {"s": drawn(4), "b": drawn(4)}),
    "matmul": (node("MatMul", "w"), {"w": drawn(8, 3)}),
    "matmul, batched": (node("MatMul", "w"), {"w": drawn(4, 8, 3)}),
    "leaky": (node("LeakyRelu", alpha=0.2), {}),
    "elu": (node("Elu", alpha=0.7), {}),
    "gelu": (node("Gelu"), {}),
    "gelu, tanh": (node("Gelu", approximate="tanh"), {}),
    "hard sigmoid": (node("HardSigmoid"), {}),
    "hard sigmoid, torch's": (node("HardSigmoid", alpha=1 / 6), {}),
    "prelu": (node("PRelu", "s"), {"s": drawn(4, 1, 1)}),
    "clip": (node("Clip", "", "high"), {"high": np.float32(0.5)}),
    "pow": (node("Pow", "c"), {"c": np.float32(2)}),
    "max pool": (node("MaxPool", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 0], ceil_mode=1), {}),
    "max pool, uneven": (node("MaxPool", kernel_shape=[3, 3], pads=[0, 0, 2, 1]), {}),
    "average pool": (node("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), {}),
    "average pool, counted": (
        node("AveragePool", kernel_shape=[3, 3], pads=[0, 1, 1, 1], count_include_pad=1),
        {},
    ),
    "reduce, axes": (node("ReduceMean", "axes", keepdims=0), {"axes": ints(1, -1)}),
    "argmax": (node("ArgMax", axis=2, keepdims=0), {}),
    "flatten, 2": (node("Flatten", axis=2), {}),
    "flatten, 0": (node("Flatten", axis=0), {}),
    "reshape": (node("Reshape", "to"), {"to": ints(0, 2, -1)}),
    "unsqueeze": (node("Unsqueeze", "axes"), {"axes": ints(0, 3)}),
    "transpose": (node("Transpose", perm=[0, 3, 1, 2]), {}),
    "slice": (
        node("Slice", "b", "e", "a", "s"),
        {"b": ints(1, -5), "e": ints(4, 1 << 62), "a": ints(1, 3), "s": ints(1, 2)},
    ),
    "gather": (node("Gather", "i", axis=3), {"i": ints(3, 0)}),
    "gather, one": (node("Gather", "i", axis=1), {"i": np.asarray(2)}),
    "expand": (node("Expand", "to"), {"to": ints(3, 1, 4, 1, 8)}),
    "tile": (node("Tile", "n"), {"n": ints(1, 2, 1, 1)}),
    "pad": (node("Pad", "p", "v"), {"p": ints(0, 0, 1, 2, 0, 0, 0, 3), "v": np.float32(1.5)}),
    "pad, reflect": (node("Pad", "p", mode="reflect"), {"p": ints(0, 0, 1, 2, 0, 0, 0, 3)}),
    "pad, edge": (node("Pad", "p", mode="edge"), {"p": ints(0, 0, 1, 2, 0, 0, 0, 3)}),
    "resize, nearest": (
        node("Resize", "", "s", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        {"s": np.asarray([1, 1, 2, 3], np.float32)},
    ),
    "resize, linear": (node("Resize", "", "", "n", mode="linear"), {"n": ints(2, 4, 9, 5)}),
    "resize, corners": (
        node("Resize", "", "", "n", mode="linear", coordinate_transformation_mode="align_corners"),
        {"n": ints(2, 4, 9, 5)},
    ),
    "pixel shuffle": (node("DepthToSpace", blocksize=2, mode="CRD"), {}),
    "cast": (node("Cast", to=TensorProto.INT32), {}),
}


@pytest.mark.parametrize("name", ONE_NODE)
def test_each_operator_computes_what_onnx_runtime_computes(name: str, tmp_path: Path) -> None:
    only, constants = ONE_NODE[name]
    imported = from_onnx(
        write(tmp_path / "a.onnx", [only], constants, opset=21 if "group norm" in name else 20)
    )
    assert len(imported.parity) == 6  # three inputs, optimisations off and on
    assert not imported.carried
    assert (imported.input_names, imported.output_names) == (("x",), ("y",))


def test_positive_arguments_and_integers(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Abs", ["x"], ["a"]),
        helper.make_node("Sqrt", ["a"], ["b"]),
        helper.make_node("Log", ["b"], ["c"]),
        helper.make_node("Cast", ["c"], ["d"], to=TensorProto.INT64),
        helper.make_node("Div", ["d", "two"], ["e"]),
        helper.make_node("Greater", ["c", "half"], ["f"]),
        helper.make_node("Where", ["f", "x", "c"], ["g"]),
    ]
    constants = {"two": np.asarray(-2), "half": np.float32(0.5)}
    imported = from_onnx(write(tmp_path / "a.onnx", nodes, constants, outputs=("e", "g")))
    assert imported.output_names == ("e", "g")
    assert set(imported.gm(*imported.example_inputs)) == {"e", "g"}


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "one way", "stated"])
def test_recurrent_layers(kind: str, tmp_path: Path) -> None:
    gates, ways = (3 if kind == "GRU" else 4), (1 if kind == "one way" else 2)
    op = "GRU" if kind == "GRU" else "LSTM"
    constants = {
        "w": drawn(ways, gates * 5, 8, seed=1),
        "r": drawn(ways, gates * 5, 5, seed=2),
        "b": drawn(ways, 2 * gates * 5, seed=3),
        "h": drawn(ways, 4, 5, seed=4) if kind == "stated" else np.zeros((ways, 4, 5), np.float32),
        "c": drawn(ways, 4, 5, seed=5),
    }
    states = ["h", "c"] if kind == "stated" else ["h"] if kind == "GRU" else []
    attributes: dict[str, object] = {
        "hidden_size": 5,
        "direction": "bidirectional" if ways == 2 else "forward",
    }
    if op == "GRU":
        attributes["linear_before_reset"] = 1
    inputs = ["x", "w", "r", "b", *([""] if states else []), *states]
    outputs = ("y", "last") if op == "GRU" else ("y", "last", "cell")
    layer = helper.make_node(op, inputs, list(outputs), "/rnn/it", **attributes)
    imported = from_onnx(write(tmp_path / "a.onnx", [layer], constants, shape=(6, 4, 8), outputs=outputs))
    assert isinstance(imported.gm.get_submodule("rnn"), nn.GRU if op == "GRU" else nn.LSTM)
    calls = [n for n in imported.gm.graph.nodes if n.op == "call_module"]
    assert len(calls[0].args) == (2 if kind == "stated" else 1)  # zeros are what PyTorch begins with


def test_shapes_are_numbers_and_keep_the_batch_free(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
        helper.make_node("Slice", ["s", "two", "four"], ["tail"]),
        helper.make_node("Mul", ["tail", "ones"], ["tail2"]),
        helper.make_node("Concat", ["n1", "minus", "tail2"], ["to"], axis=0),
        helper.make_node("Reshape", ["x", "to"], ["y"]),
    ]
    constants = {
        "zero": np.asarray(0),
        "axes": ints(0),
        "two": ints(2),
        "four": ints(4),
        "ones": ints(1, 1),
        "minus": ints(-1),
    }
    imported = from_onnx(write(tmp_path / "a.onnx", nodes, constants, shape=("n", 4, 6, 8)))
    assert tuple(imported.gm(torch.zeros(3, 4, 6, 8)).shape) == (3, 4, 6, 8)
    assert to_onnx(imported.gm, imported.example_inputs, tmp_path / "b.onnx").dynamic_batch


@pytest.mark.parametrize("opset", [9, 11, 13])
def test_old_files_are_brought_to_one_operator_set(opset: int, tmp_path: Path) -> None:
    squeeze = {"axes": [2, 3]} if opset < 13 else {}
    nodes = [
        helper.make_node("Conv", ["x", "stem.weight"], ["a"], "stem", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["a"], ["b"]),
        helper.make_node("Squeeze", ["b", *(["axes"] if opset >= 13 else [])], ["c"], **squeeze),
        helper.make_node("Gemm", ["c", "fc.weight", "fc.bias"], ["y"], "fc", transB=1),
    ]
    constants = {"stem.weight": drawn(5, 4, 3, 3), "fc.weight": drawn(3, 5), "fc.bias": drawn(3)}
    constants |= {"axes": ints(2, 3)} if opset >= 13 else {}
    imported = from_onnx(write(tmp_path / "a.onnx", nodes, constants, opset=opset))
    assert isinstance(imported.gm.get_submodule("stem"), nn.Conv2d)
    assert isinstance(imported.gm.get_submodule("fc"), nn.Linear)


@pytest.mark.parametrize(
    "net", [Convolutional(), Residual(), Recurrent()], ids=["conv", "residual", "recurrent"]
)
def test_our_own_files_come_back_with_their_names(net: nn.Module, tmp_path: Path) -> None:
    gm = traced(net)
    example = torch.randn(1, 1 if isinstance(net, Recurrent) else 3, 16, 16)
    to_onnx(gm, example, tmp_path / "a.onnx")
    imported = from_onnx(tmp_path / "a.onnx")

    def layers(of: torch.fx.GraphModule) -> list[str]:
        kinds = (nn.Conv2d, nn.Linear, nn.LSTM)
        return [
            n.target
            for n in of.graph.nodes
            if n.op == "call_module" and isinstance(of.get_submodule(n.target), kinds)
        ]

    assert layers(imported.gm) == layers(gm)
    to_onnx(imported.gm, imported.example_inputs, tmp_path / "b.onnx")
    counts = [
        [
            n.op_type
            for n in onnx.load(tmp_path / f"{name}.onnx").graph.node
            if n.op_type in ("Conv", "Gemm", "LSTM")
        ]
        for name in "ab"
    ]
    assert counts[0] == counts[1]
    report = fxdecomp.report(
        fxdecomp.transform(fxdecomp.trace(imported.gm, imported.example_inputs), Policy("svd", 0.5))
    )
    assert len(report.outcomes) >= 2


def test_a_shared_weight_is_one_module(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "w"], ["y"], "second", pads=[1, 1, 1, 1]),
    ]
    imported = from_onnx(write(tmp_path / "a.onnx", nodes, {"w": drawn(4, 4, 3, 3)}))
    assert [n.target for n in imported.gm.graph.nodes if n.op == "call_module"] == ["first", "first"]


def test_bad_files_and_shapes_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(ExportError, match="cannot be read as an ONNX model"):
        from_onnx(tmp_path / "bad.onnx")
    path = write(tmp_path / "a.onnx", [node("Relu")], shape=("n", 4, "h", 8))
    with pytest.raises(ExportError, match=r"axes \[2\] may have any length.*shapes=\(\(1, 4, 224, 8\),\)"):
        from_onnx(path)
    assert from_onnx(path, shapes=[(2, 4, 5, 8)]).example_inputs[0].shape == (2, 4, 5, 8)
    with pytest.raises(ExportError, match="takes 1 inputs, 2 shapes were given"):
        from_onnx(path, shapes=[(2, 4, 5, 8), (1,)])


def test_names_that_python_does_not_take(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["x", "onnx::Conv_12"], ["y"], "/backbone/layer.0/Conv")]
    imported = from_onnx(write(tmp_path / "a.onnx", nodes, {"onnx::Conv_12": drawn(4, 4, 1, 1)}))
    assert [n.target for n in imported.gm.graph.nodes if n.op == "call_module"] == ["backbone.layer.0"]
    assert building.identifier("input.1") == "input_1"
    assert building.identifier("0") == "_0"


class Mixed(nn.Module):
    """A Linear over three axes, whose bias ONNX adds in a node of its own, and an Embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.layers = nn.Sequential(OrderedDict(fc=nn.Linear(8, 6), act=nn.GELU(), out=nn.Linear(6, 4)))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layers(self.words(tokens))


def test_linears_over_three_axes_keep_their_bias(tmp_path: Path) -> None:
    to_onnx(traced(Mixed()), torch.arange(10).reshape(2, 5), tmp_path / "a.onnx")
    imported = from_onnx(tmp_path / "a.onnx")
    assert imported.gm.get_submodule("layers.fc").bias is not None
    assert [n.target for n in imported.gm.graph.nodes if n.op == "call_module"] == ["layers.fc", "layers.out"]


def test_constants_that_come_and_go_are_not_taken_for_each_other() -> None:
    builder = building.Builder(lambda *_: None)
    nodes = [builder.tensor(np.full(1, float(i), np.float32)) for i in range(50)]
    builder.values["y"] = builder.call(torch.cat, nodes)
    assert builder.finish(["y"])().tolist() == list(range(50))
