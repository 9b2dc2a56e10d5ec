"""A graph that was read from an ONNX file is written as that file, with its changed layers replaced."""

import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.fx import GraphModule

import fxdecomp
from fxdecomp import Policy, Ratio
from fxdecomp.export import ExportReport, read_metadata, to_onnx
from fxdecomp.importing import ImportedModel, from_onnx
from tests.importing.files import drawn, write

NODES = [
    helper.make_node("Conv", ["x", "w"], ["a"], "", pads=[0, 1, 2, 1], strides=[2, 1], doc_string="uneven"),
    helper.make_node("BatchNormalization", ["a", "s", "b", "m", "v"], ["c"]),
    helper.make_node("Relu", ["c"], ["d"]),
    helper.make_node("Conv", ["d", "w2", "b2"], ["e"], pads=[1, 1, 1, 1]),
    helper.make_node("Add", ["e", "d"], ["f"]),
    helper.make_node("GlobalAveragePool", ["f"], ["g"]),
    helper.make_node("Flatten", ["g"], ["h"]),
    helper.make_node("Gemm", ["h", "w3", "b3"], ["y"], transB=1),
]
CONSTANTS = {
    **{"w": drawn(16, 8, 3, 3), "w2": drawn(16, 16, 3, 3, seed=1) / 8, "b2": drawn(16)},
    **{"s": drawn(16), "b": drawn(16), "m": drawn(16), "v": np.abs(drawn(16)) + 0.1},
    **{"w3": drawn(12, 16), "b3": drawn(12)},
}


def written(path: Path, opset: int = 17, ir_version: int = 8) -> Path:
    """A file as others write it: nodes without names, metadata, and weights among the inputs before IR 4."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 8, 12, 10))]
    if ir_version < 4:
        inputs += [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape)
            for name, value in CONSTANTS.items()
        ]
    graph = helper.make_graph(
        NODES,
        "theirs",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 12))],
        [numpy_helper.from_array(value, name) for name, value in CONSTANTS.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    model.producer_name = "them"
    helper.set_model_props(model, {"labels": "cat, dog"})
    onnx.save(model, path)
    return path


def halved(imported: ImportedModel) -> GraphModule:
    gm = fxdecomp.trace(imported.gm, imported.example_inputs)
    return fxdecomp.transform(gm, Policy("spatial_svd", Ratio(0.5), require_saving=False))


def uses_the_file(report: ExportReport) -> bool:
    return not any("was not used" in note for note in report.notes)


def test_a_file_that_nothing_is_changed_in_comes_out_byte_for_byte(tmp_path: Path) -> None:
    path = written(tmp_path / "a.onnx")
    imported = from_onnx(path)
    gm = fxdecomp.trace(imported.gm, imported.example_inputs)
    to_onnx(gm, imported.example_inputs, tmp_path / "b.onnx")
    assert (tmp_path / "b.onnx").read_bytes().startswith(path.read_bytes())
    told = read_metadata(tmp_path / "b.onnx")
    assert told is not None
    assert told.inputs == {"x": (1, 8, 12, 10)}
    assert next(item.key for item in onnx.load(tmp_path / "b.onnx").metadata_props) == "labels"
    again = from_onnx(tmp_path / "b.onnx")  # what this package wrote into it is written anew, once
    to_onnx(again.gm, again.example_inputs, tmp_path / "c.onnx")
    keys = [item.key for item in onnx.load(tmp_path / "c.onnx").metadata_props]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(("opset", "ir_version"), [(7, 3), (10, 5), (17, 8)])
def test_only_the_layers_are_replaced(opset: int, ir_version: int, tmp_path: Path) -> None:
    path = written(tmp_path / "a.onnx", opset, ir_version)
    imported = from_onnx(path)
    report = to_onnx(halved(imported), imported.example_inputs, tmp_path / "b.onnx")
    assert uses_the_file(report)
    assert report.dynamic_batch
    assert (report.inputs, report.outputs, report.opset) == (("x",), ("y",), opset)
    before, after = onnx.load(path), onnx.load(tmp_path / "b.onnx")
    kinds = [node.op_type for node in after.graph.node]
    assert kinds[:6] == ["Conv", "Conv", "Relu", "Conv", "Conv", "Add"]  # the BatchNormalization is gone
    assert after.graph.node[2] == before.graph.node[2]
    assert list(after.graph.node[1].output) == ["c"]
    assert not {"w", "w2", "s", "m"} & {item.name for item in after.graph.initializer}
    assert after.graph.output == before.graph.output
    assert (after.ir_version, after.opset_import) == (before.ir_version, before.opset_import)
    assert (after.producer_name, after.graph.name) == ("them", "theirs")
    constants = {item.name for item in after.graph.initializer}
    taken = {item.name for item in after.graph.input}
    assert taken == {"x"} | (constants if ir_version < 4 else set())


def test_lower_precisions_are_made_of_the_same_file(tmp_path: Path) -> None:
    imported = from_onnx(written(tmp_path / "a.onnx", 9, 3))
    small = halved(imported)
    batches = [torch.randn(2, 8, 12, 10) for _ in range(4)]
    for kind in ("int8", "fp16"):
        report = to_onnx(
            small,
            imported.example_inputs,
            tmp_path / "b.onnx",
            quantize=kind,  # type: ignore[arg-type]
            calibration=batches,
        )
        assert uses_the_file(report)
        assert report.quantization is not None
        assert report.quantization.error < 0.1


def test_a_pickled_graph_is_still_that_file(tmp_path: Path) -> None:
    imported = from_onnx(written(tmp_path / "a.onnx"))
    small = pickle.loads(pickle.dumps(halved(imported)))
    report = to_onnx(small, imported.example_inputs, tmp_path / "b.onnx")
    assert uses_the_file(report)
    assert onnx.load(tmp_path / "b.onnx").producer_name == "them"


def test_trained_weights_are_written(tmp_path: Path) -> None:
    nodes = [
        helper.make_node(
            "LSTM", ["x", "w", "r", "b"], ["a", "", ""], hidden_size=5, direction="bidirectional"
        ),
        helper.make_node("BatchNormalization", ["a", "s", "z", "m", "v"], ["c"]),
        helper.make_node("MatMul", ["c", "p"], ["e"]),
        helper.make_node("Add", ["e", "q"], ["y"]),
    ]
    constants = {
        "w": drawn(2, 20, 8),
        "r": drawn(2, 20, 5),
        "b": drawn(2, 40),
        "p": drawn(5, 3),
        "q": drawn(3),
    }
    constants |= {"s": drawn(2), "z": drawn(2), "m": drawn(2), "v": np.abs(drawn(2))}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (6, 2, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (6, 2, 2, 3))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "a.onnx",
    )
    imported = from_onnx(tmp_path / "a.onnx")
    gm = fxdecomp.trace(imported.gm, imported.example_inputs)
    with torch.no_grad():
        for parameter in gm.parameters():
            parameter.mul_(1.1).add_(0.01)
    report = to_onnx(gm, imported.example_inputs, tmp_path / "b.onnx")  # compared with the graph as it is now
    assert uses_the_file(report)
    after = onnx.load(tmp_path / "b.onnx").graph
    assert [node.op_type for node in after.node] == ["LSTM", "BatchNormalization", "MatMul", "Add"]
    assert len(after.initializer) == len(constants)


RECURRENT = {
    "lstm": ("LSTM", {"b": drawn(2, 40)}, []),
    "without biases": ("LSTM", {}, []),
    "with states": ("GRU", {"b": drawn(2, 30), "h": drawn(2, 2, 5)}, ["", "h"]),
}


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("fitted", [False, True])
def test_a_recurrent_layer_stays_one_node_with_a_narrower_input(
    name: str, fitted: bool, tmp_path: Path
) -> None:
    op, more, tail = RECURRENT[name]
    gates = 4 if op == "LSTM" else 3
    options = {"hidden_size": 5, "direction": "bidirectional"}
    if op == "GRU":
        options["linear_before_reset"] = 1
    read = ["t", "w", "r", "b" if "b" in more else "", *tail]
    nodes = [
        helper.make_node("Tanh", ["x"], ["t"]),
        helper.make_node(op, read if any(read[3:]) else read[:3], ["a", "l"], "theirs", **options),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    constants = {"w": drawn(2, gates * 5, 16), "r": drawn(2, gates * 5, 5, seed=2), **more}
    write(tmp_path / "a.onnx", nodes, constants, shape=(6, 2, 16), outputs=("y", "l"))
    imported = from_onnx(tmp_path / "a.onnx")
    gm = fxdecomp.trace(imported.gm, imported.example_inputs)
    data = [torch.randn(6, 2, 16, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    small = fxdecomp.transform(gm, Policy("svd", 4), calibration=data if fitted else None)
    report = to_onnx(small, imported.example_inputs, tmp_path / "b.onnx")  # compared with the graph
    assert uses_the_file(report)
    after = onnx.load(tmp_path / "b.onnx").graph
    assert [node.op_type for node in after.node] == ["Tanh", "MatMul", op, "Relu"]
    shapes = {item.name: tuple(item.dims) for item in after.initializer}
    assert shapes[after.node[2].input[1]] == (2, gates * 5, 4)
    assert "w" not in shapes
    again = from_onnx(tmp_path / "b.onnx")
    assert torch.allclose(again.gm(data[0])["y"], small(data[0])["y"], atol=1e-6)


def test_what_the_user_edited_goes_through_pytorch_and_says_so(tmp_path: Path) -> None:
    imported = from_onnx(written(tmp_path / "a.onnx"))
    gm = fxdecomp.trace(imported.gm, imported.example_inputs)
    relu = next(node for node in gm.graph.nodes if node.target is torch.relu)
    relu.target = torch.sigmoid
    gm.recompile()
    report = to_onnx(gm, imported.example_inputs, tmp_path / "b.onnx")
    (note,) = (note for note in report.notes if "was not used" in note)
    assert "'relu'" in note
    assert "Sigmoid" in {node.op_type for node in onnx.load(tmp_path / "b.onnx").graph.node}


def test_a_rewired_graph_is_written_as_it_is_wired(tmp_path: Path) -> None:
    imported = from_onnx(written(tmp_path / "a.onnx"))
    gm = fxdecomp.trace(imported.gm, imported.example_inputs)
    relu = next(node for node in gm.graph.nodes if node.target is torch.relu)
    relu.replace_all_uses_with(relu.all_input_nodes[0])
    gm.graph.eliminate_dead_code()
    gm.recompile()
    assert uses_the_file(to_onnx(gm, imported.example_inputs, tmp_path / "b.onnx"))
    assert "Relu" not in {node.op_type for node in onnx.load(tmp_path / "b.onnx").graph.node}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"opset": 18}, "operator set 18 was asked for"),
        ({"dynamic_axes": (2,)}, "axis 2 was asked to be free"),
        ({"input_names": ["image"]}, "other names"),
    ],
)
def test_what_the_file_is_not_goes_through_pytorch(
    options: dict[str, object], reason: str, tmp_path: Path
) -> None:
    imported = from_onnx(written(tmp_path / "a.onnx"))
    report = to_onnx(imported.gm, imported.example_inputs, tmp_path / "b.onnx", **options)  # type: ignore[arg-type]
    assert reason in " ".join(report.notes)


def test_weights_in_a_second_file_stay_there(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = written(tmp_path / "in" / "a.onnx")
    model = onnx.load(path)
    onnx.save_model(model, path, save_as_external_data=True, location="theirs.bin", size_threshold=0)
    imported = from_onnx(path)
    for gm in (imported.gm, halved(imported)):
        report = to_onnx(gm, imported.example_inputs, tmp_path / "b.onnx")
        assert uses_the_file(report)
        assert (tmp_path / "b.onnx.data").exists()
    (tmp_path / "in" / "theirs.bin").unlink()
    report = to_onnx(imported.gm, imported.example_inputs, tmp_path / "c.onnx")
    assert "cannot be read as an ONNX model" in " ".join(report.notes)


def test_a_free_batch_is_that_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "a.onnx")
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, path)
    imported = from_onnx(path)
    report = to_onnx(imported.gm, imported.example_inputs, tmp_path / "b.onnx")
    assert not report.dynamic_batch
    assert "the file fixes it" in " ".join(report.notes)


def test_a_wrong_file_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fxdecomp.export import onnx_nodes

    monkeypatch.setattr(onnx_nodes, "_spatial", lambda module: {"strides": [1, 1]})
    imported = from_onnx(written(tmp_path / "a.onnx"))
    report = to_onnx(halved(imported), imported.example_inputs, tmp_path / "b.onnx")
    assert not uses_the_file(report)
    assert report.max_relative < 1e-4


def test_a_layer_may_be_called_output(tmp_path: Path) -> None:
    conv = helper.make_node("Conv", ["x", "output.weight"], ["y"], "output")
    path = write(tmp_path / "a.onnx", [conv], {"output.weight": drawn(16, 4, 3, 3)})
    imported = from_onnx(path)
    assert uses_the_file(to_onnx(halved(imported), imported.example_inputs, tmp_path / "b.onnx"))
