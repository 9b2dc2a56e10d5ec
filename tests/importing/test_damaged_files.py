"""A damaged or hostile file is an error of the package's own that names the file, at once."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fxdecomp import BenchmarkError, ExportError
from fxdecomp.export import to_onnx
from fxdecomp.importing import from_onnx

LARGE = np.array([10**7, 10**6, 8])


def made(
    *nodes: onnx.NodeProto,
    shape: Sequence[int] = (1, 8),
    out: Sequence[int] | None = (1, 8),
    opset: int = 18,
    ir: int = 9,
    **weights: NDArray[np.generic],
) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shape), ("y", out))]
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


node = helper.make_node
RELU = node("Relu", ["x"], ["y"])
LINEAR = node("MatMul", ["x", "w"], ["y"])
W = np.ones((8, 8), np.float32)


def weight_with(change: Callable[[onnx.TensorProto], object]) -> onnx.ModelProto:
    model = made(LINEAR, w=W)
    change(model.graph.initializer[0])
    return model


def outside(weight: onnx.TensorProto) -> None:
    """Weights of another file, such as one that is none of the model's business."""
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", "../../../etc/passwd"


WHOLE = made(LINEAR, w=W).SerializeToString()
DAMAGED: dict[str, bytes | onnx.ModelProto] = {
    "empty": b"",
    "a page": b"<!DOCTYPE html><html>404</html>",
    "cut off": WHOLE[: len(WHOLE) // 2],
    "no graph": onnx.ModelProto(ir_version=9),
    "an input that is nowhere": made(node("Add", ["x", "nope"], ["y"])),
    "a circle": made(node("Add", ["x", "b"], ["y"]), node("Relu", ["y"], ["b"])),
    "a name twice": made(RELU, node("Neg", ["x"], ["y"])),
    "an output that is nowhere": made(node("Relu", ["x"], ["z"])),
    "a future operator set": made(RELU, opset=9999),
    "a future format": made(RELU, ir=999),
    "an operator of old": made(RELU, opset=1, ir=3),
    "an operator that is none": made(node("Nope", ["x"], ["y"])),
    "an attribute of another type": made(node("Gemm", ["x", "w"], ["y"], alpha="text"), w=W),
    "an attribute that lacks": made(node("Concat", ["x", "x"], ["y"])),
    "an operand that lacks": made(node("Add", ["x"], ["y"])),
    "shapes that do not fit": made(LINEAR, w=np.ones((7, 7), np.float32)),
    "a kernel without axes": made(node("Conv", ["x", "w"], ["y"]), w=np.ones(3, np.float32)),
    "a weight of whole numbers": made(LINEAR, w=np.ones((8, 8), np.int64)),
    "a weight cut short": weight_with(lambda w: setattr(w, "raw_data", b"123")),
    "a weight of negative size": weight_with(lambda w: w.dims.__setitem__(0, -8)),
    "a weight of no type": weight_with(lambda w: setattr(w, "data_type", 999)),
    "a weight outside": weight_with(outside),
    "a value without end": made(node("Expand", ["x", "s"], ["y"]), out=None, s=LARGE),
    "a sum without end": made(
        node("Expand", ["x", "s"], ["e"]), node("ReduceSum", ["e"], ["y"]), out=None, s=LARGE
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_named(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, path = DAMAGED[kind], tmp_path / "bad.onnx"
    path.write_bytes(data if isinstance(data, bytes) else data.SerializeToString())
    with pytest.raises(ExportError, match=r"bad\.onnx (cannot be read as an ONNX model|on inputs)"):
        from_onnx(path)
    assert capfd.readouterr() == ("", "")


def test_an_input_that_no_memory_holds_is_refused(tmp_path: Path) -> None:
    onnx.save(made(RELU, shape=(10**6, 10**7), out=None), str(tmp_path / "a.onnx"))
    with pytest.raises(BenchmarkError, match="more numbers than can be drawn"):
        from_onnx(tmp_path / "a.onnx")


def test_what_no_library_foresees_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise KeyError("nope")

    onnx.save(made(LINEAR, w=W), str(tmp_path / "a.onnx"))
    monkeypatch.setattr("fxdecomp.importing.origin.converted", fails)
    with pytest.raises(ExportError, match=r"a\.onnx cannot be converted to PyTorch, .* KeyError"):
        from_onnx(tmp_path / "a.onnx")


def test_names_that_are_code_are_names(tmp_path: Path) -> None:
    """Names of values and nodes become names in generated Python."""
    code = f"x=open({str(tmp_path / 'mark')!r}, 'w')"
    model = onnx.helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", [code, f"w{code}"], [f"y{code}"], f'n"), {code}, ("')],
            code,
            [helper.make_tensor_value_info(code, TensorProto.FLOAT, (1, 8))],
            [helper.make_tensor_value_info(f"y{code}", TensorProto.FLOAT, (1, 8))],
            [numpy_helper.from_array(W, f"w{code}")],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.save(model, str(tmp_path / "a.onnx"))
    imported = from_onnx(tmp_path / "a.onnx")
    assert imported.input_names == (code,)
    to_onnx(imported.gm, imported.example_inputs, tmp_path / "b.onnx")
    assert not (tmp_path / "mark").exists()
