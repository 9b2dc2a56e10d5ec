"""Inputs that have one value for good."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import fxdecomp
from fxdecomp.errors import ExportError
from fxdecomp.importing import fix_inputs, from_onnx
from fxdecomp.sites import survey
from tests.importing.files import drawn

RATES = (8000, 16000)


def branch(name: str, stride: int) -> onnx.GraphProto:
    nodes = [
        helper.make_node("Conv", ["x", "w"], [f"{name}a"], f"{name}/conv", strides=[stride]),
        helper.make_node("Relu", [f"{name}a"], [name]),
    ]
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])


def of_two_rates(path: Path) -> Path:
    """All layers stand in the branches of an If that asks for the sampling rate."""
    nodes = [
        helper.make_node("Equal", ["rate", "low"], ["q"]),
        helper.make_node("If", ["q"], ["y"], then_branch=branch("then", 1), else_branch=branch("else", 2)),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, "t"]),
        helper.make_tensor_value_info("rate", TensorProto.INT64, []),
    ]
    constants = {"w": drawn(16, 4, 5), "low": np.asarray(RATES[0])}
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_empty_tensor_value_info("y")], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("rate", RATES)
def test_the_layers_of_a_branch_that_an_input_chooses(rate: int, tmp_path: Path) -> None:
    path = of_two_rates(tmp_path / "both.onnx")
    x = torch.from_numpy(drawn(1, 4, 30))
    both = from_onnx(path, inputs={"x": x, "rate": np.asarray(rate)})
    assert any("fix_inputs" in note for note in fxdecomp.report(both.gm).record.notes)
    fix_inputs(path, {"rate": rate}, tmp_path / "one.onnx")
    assert [each.op_type for each in onnx.load(tmp_path / "one.onnx").graph.node] == ["Conv", "Relu"]
    one = from_onnx(tmp_path / "one.onnx", inputs=[x])
    assert (one.input_names, one.carried) == (("x",), ())
    (site,) = survey(fxdecomp.trace(one.gm, one.example_inputs)).sites
    assert site.spec.kernel == (5,)
    wanted = onnxruntime.InferenceSession(path).run(None, {"x": x.numpy(), "rate": np.asarray(rate)})
    assert np.allclose(one.gm(x).detach().numpy(), wanted[0], atol=1e-5)


def test_what_cannot_be_fixed_is_named(tmp_path: Path) -> None:
    path = of_two_rates(tmp_path / "both.onnx")
    with pytest.raises(ExportError, match="has no input 'sr'; it has x, rate"):
        fix_inputs(path, {"sr": 8000}, tmp_path / "one.onnx")
    with pytest.raises(ExportError, match=r"'x' of .* has shape \[None, 4, None\]; \(1, 3, 30\) was given"):
        fix_inputs(path, {"x": np.ones((1, 3, 30))}, tmp_path / "one.onnx")
    assert [each.name for each in tmp_path.iterdir()] == ["both.onnx"]
