"""What PyTorch has no word for runs in ONNX Runtime where it stands, and is written as it was."""

import copy
import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.fx import GraphModule

import fxdecomp
from fxdecomp import Policy, Ratio, Reason
from fxdecomp.errors import ExportError, FxdecompError
from fxdecomp.export import sessions, to_onnx
from fxdecomp.importing import building, converting, from_onnx
from fxdecomp.importing.carried import Carried
from fxdecomp.importing.origin import OnnxOrigin
from fxdecomp.latency.mock_networks import write_mock
from tests.importing.files import drawn, ints, node, write

CONV = {"w": drawn(16, 4, 3, 3), "w2": drawn(16, 16, 3, 3)}


def leaves(gm: GraphModule) -> list[Carried]:
    return [module for module in gm.modules() if isinstance(module, Carried)]


def branch(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
    result = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    return helper.make_graph(nodes, name, [], [result])


def with_if(path: Path) -> Path:
    """Conv, an If on the data with a Conv in one branch, and a Conv behind it."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMean", ["a"], ["m"], keepdims=0),
        helper.make_node("Greater", ["m", "zero"], ["q"]),
        helper.make_node(
            "If",
            ["q"],
            ["b"],
            then_branch=branch(
                "then", helper.make_node("Conv", ["a", "w2"], ["t"], "inner", pads=[1, 1, 1, 1])
            ),
            else_branch=branch("else", helper.make_node("Neg", ["a"], ["e"])),
        ),
        helper.make_node("Conv", ["b", "w3"], ["y"]),
    ]
    constants = CONV | {"w3": drawn(8, 16, 1, 1), "zero": np.asarray(0, np.float32)}
    return write(path, nodes, constants, shape=("n", 4, 6, 8))


def test_neighbours_form_one_leaf_with_several_outputs(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("NonZero", ["a"], ["b"]),
        helper.make_node("Unique", ["b"], ["u", "", "", "n"]),
        helper.make_node("Det", ["x"], ["y"]),
    ]
    imported = from_onnx(write(tmp_path / "a.onnx", nodes, shape=(2, 4, 6, 6), outputs=("b", "u", "n", "y")))
    assert [leaf.contents for leaf in leaves(imported.gm)] == ["NonZero, Unique", "Det"]
    assert imported.carried == ("NonZero, Unique", "Det")
    found = imported.gm(*imported.example_inputs)
    assert {name: value.dtype for name, value in found.items()} == {
        **dict.fromkeys(("b", "u", "n"), torch.int64),
        "y": torch.float32,
    }
    to_onnx(imported.gm, imported.example_inputs, tmp_path / "b.onnx")
    assert (tmp_path / "b.onnx").read_bytes().startswith((tmp_path / "a.onnx").read_bytes())


@pytest.mark.parametrize(
    ("only", "constants"),
    [
        (node("Conv", "x2"), {}),
        (
            node("Slice", "b", "e", "a", "s"),
            {"b": ints(-1), "e": ints(-9), "a": ints(3), "s": ints(-1)},
        ),
        (node("MaxUnpool", "i", kernel_shape=[2, 2]), {"i": np.zeros((2, 4, 6, 8), np.int64)}),
        (node("Resize", "", "s", mode="nearest"), {"s": np.asarray([1, 1, 2, 2], np.float32)}),
        (
            node("Resize", "", "s", mode="cubic", cubic_coeff_a=-0.5),
            {"s": np.asarray([1, 1, 2, 2], np.float32)},
        ),
        (node("AveragePool", kernel_shape=[2, 2], pads=[0, 0, 1, 1]), {}),
        (node("Pad", "p", mode="reflect"), {"p": ints(1, 0, 0, 0, 0, 0, 0, 0)}),
    ],
    ids=["computed weight", "backwards", "unpool", "nearest", "cubic", "pool", "pad"],
)
def test_a_node_without_a_counterpart_is_carried(
    only: onnx.NodeProto, constants: dict[str, np.ndarray], tmp_path: Path
) -> None:
    nodes = [only]
    if "x2" in only.input:
        nodes = [helper.make_node("Relu", ["x"], ["x2"]), only]
    imported = from_onnx(write(tmp_path / "a.onnx", nodes, constants))
    assert imported.carried == (only.op_type,)
    assert len(imported.parity) == 6


def test_layers_around_a_subgraph_are_replaced_and_the_one_inside_is_listed(tmp_path: Path) -> None:
    imported = from_onnx(with_if(tmp_path / "a.onnx"))
    assert imported.carried == ("If",)
    gm = fxdecomp.trace(imported.gm, imported.example_inputs)
    batches = [torch.randn(4, 4, 6, 8) for _ in range(4)]
    small = fxdecomp.transform(
        gm, Policy("channel_svd", Ratio(0.25), require_saving=False), calibration=batches
    )
    told = fxdecomp.report(small)
    assert len(told.applied) == 2
    (inside,) = (skipped for skipped in told.skipped if skipped.reason is Reason.INSIDE_LEAF)
    assert inside.site.endswith(".inner")
    assert (inside.layer, inside.params) == ("Conv", 16 * 16 * 9)
    assert "(If)" in inside.detail
    written = to_onnx(small, imported.example_inputs, tmp_path / "b.onnx")
    assert not [note for note in written.notes if "was not used" in note]
    before, after = (onnx.load(tmp_path / f"{name}.onnx").graph for name in "ab")
    assert [n.op_type for n in after.node] == ["Conv", "Conv", "ReduceMean", "Greater", "If", "Conv", "Conv"]
    assert after.node[4] == before.node[3]
    assert "w2" in {item.name for item in after.initializer}


def test_recovery_works_block_by_block_before_a_leaf(tmp_path: Path) -> None:
    imported = from_onnx(with_if(tmp_path / "a.onnx"))
    gm = fxdecomp.trace(imported.gm, imported.example_inputs)
    small = fxdecomp.transform(gm, Policy("channel_svd", Ratio(0.25), require_saving=False))
    batches = [torch.randn(4, 4, 6, 8) for _ in range(4)]
    better = fxdecomp.recover(small, gm, batches, block_steps=3, steps=3)
    note = fxdecomp.report(better).record.notes[-1]
    assert "block by block only: carried_If (If) stands in the way" in note
    x = imported.example_inputs[0].requires_grad_()
    with pytest.raises(FxdecompError, match="no gradient comes through If"):
        imported.gm(x).sum().backward()


def test_copies_of_a_leaf_share_its_session_and_pickle(tmp_path: Path) -> None:
    gm = from_onnx(with_if(tmp_path / "a.onnx")).gm
    (leaf,) = leaves(gm)
    (twin,) = leaves(copy.deepcopy(gm))
    assert twin._sessions is leaf._sessions
    assert leaf._sessions
    again = pickle.loads(pickle.dumps(gm))
    assert not leaves(again)[0]._sessions
    x = torch.randn(2, 4, 6, 8)
    assert torch.equal(again(x), gm(x))


def test_a_wrong_conversion_is_carried_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(builder: building.Builder, op: object) -> object:
        return builder.call(torch.tanh, builder.tensor(op.value(0)))  # type: ignore[attr-defined]

    def failing(builder: building.Builder, op: object) -> object:
        return builder.call(torch.matmul, builder.tensor(drawn(3)), builder.tensor(drawn(4)))

    nodes = [
        helper.make_node("Sigmoid", ["x"], ["a"]),
        helper.make_node("Exp", ["a"], ["b"]),
        helper.make_node("Cos", ["b"], ["y"]),
    ]
    monkeypatch.setattr(converting, "HANDLERS", {**converting.HANDLERS, "Sigmoid": wrong, "Cos": failing})
    imported = from_onnx(write(tmp_path / "a.onnx", nodes))
    assert imported.carried == ("Sigmoid", "Cos")
    to_onnx(imported.gm, imported.example_inputs, tmp_path / "b.onnx")
    assert (tmp_path / "b.onnx").read_bytes().startswith((tmp_path / "a.onnx").read_bytes())


def test_local_functions_and_other_domains(tmp_path: Path) -> None:
    function = helper.make_function(
        "mine",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 18)],
    )
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Twice", ["a"], ["b"], domain="mine"),
        helper.make_node("FusedGemm", ["b2", "v"], ["y"], domain="com.microsoft", activation="Relu"),
    ]
    nodes.insert(2, helper.make_node("Flatten", ["b"], ["b2"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4, 3, 3))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 5))],
        [numpy_helper.from_array(CONV["w"], "w"), numpy_helper.from_array(drawn(16, 5), "v")],
    )
    opsets = [
        helper.make_opsetid("", 18),
        helper.make_opsetid("mine", 1),
        helper.make_opsetid("com.microsoft", 1),
    ]
    model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=9)
    onnx.save(model, tmp_path / "a.onnx")
    imported = from_onnx(tmp_path / "a.onnx")
    assert imported.carried == ("mine.Twice", "com.microsoft.FusedGemm")
    small = fxdecomp.transform(
        fxdecomp.trace(imported.gm, imported.example_inputs),
        Policy("channel_svd", Ratio(0.25), require_saving=False),
    )
    to_onnx(small, imported.example_inputs, tmp_path / "b.onnx")
    after = onnx.load(tmp_path / "b.onnx")
    assert [n.op_type for n in after.graph.node] == ["Conv", "Conv", "Twice", "Flatten", "FusedGemm"]
    assert after.functions == model.functions


def test_sequences_text_and_bfloat16_pass(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("SplitToSequence", ["x"], ["s"], axis=1, keepdims=1),
        helper.make_node("ConcatFromSequence", ["s"], ["c"], axis=1),
        helper.make_node("Cast", ["c"], ["h"], to=TensorProto.BFLOAT16),
        helper.make_node("Cast", ["h"], ["y"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["i"], ["t"], to=TensorProto.STRING),
        helper.make_node("ReduceSum", ["x"], ["r"]),
        helper.make_node("Cast", ["r"], ["i"], to=TensorProto.INT64),
    ]
    nodes = [*nodes[:4], nodes[5], nodes[6], nodes[4]]
    outputs = ("s", "h", "y", "t")
    imported = from_onnx(write(tmp_path / "a.onnx", nodes, outputs=outputs))
    found = imported.gm(*imported.example_inputs)
    assert [tuple(part.shape) for part in found["s"]] == [(2, 1, 6, 8)] * 4
    assert found["h"].dtype is torch.bfloat16
    assert found["t"].dtype.kind in "OU"
    report = to_onnx(imported.gm, imported.example_inputs, tmp_path / "b.onnx")
    assert report.outputs == outputs


def test_without_onnxruntime_a_leaf_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gm = pickle.loads(pickle.dumps(from_onnx(with_if(tmp_path / "a.onnx")).gm))
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ExportError, match=r"install `fxdecomp\[cpu\]`"):
        gm(torch.randn(1, 4, 6, 8))
    assert sessions.CPU


def test_what_cannot_be_written_says_what_stands_in_the_way(tmp_path: Path) -> None:
    imported = from_onnx(with_if(tmp_path / "a.onnx"))
    gm = fxdecomp.trace(imported.gm, imported.example_inputs)
    next(n for n in gm.graph.nodes if n.target is torch.mean).target = torch.amax
    gm.recompile()
    with pytest.raises(ExportError, match=r"nor can PyTorch export the graph: it holds If of that file"):
        to_onnx(gm, imported.example_inputs, tmp_path / "b.onnx")


def test_inputs_of_the_user(tmp_path: Path) -> None:
    path = write(tmp_path / "a.onnx", [node("NonZero")], shape=("n", 4, "h", 8))
    mine = np.ones((3, 4, 2, 8), np.float32)
    for inputs in ([mine], {"x": torch.from_numpy(mine)}):
        imported = from_onnx(path, inputs=inputs)
        assert imported.example_inputs[0].shape == mine.shape
    with pytest.raises(ExportError, match="takes 1 inputs, 2 were given"):
        from_onnx(path, inputs=[mine, mine])
    with pytest.raises(ExportError, match=r"cannot run .* on these inputs: .*float"):
        from_onnx(path, inputs=[mine.astype(np.int64)])
    with pytest.raises(ExportError, match="takes the inputs x; given were z"):
        from_onnx(path, inputs={"z": mine})


def test_lower_precisions_and_mock_networks_of_a_file_that_carries(tmp_path: Path) -> None:
    imported = from_onnx(with_if(tmp_path / "a.onnx"))
    gm = fxdecomp.trace(imported.gm, imported.example_inputs)
    batches = [torch.randn(4, 4, 6, 8) for _ in range(4)]
    for kind in ("int8", "fp16"):
        path = tmp_path / f"{kind}.onnx"
        to_onnx(gm, imported.example_inputs, path, quantize=kind, calibration=batches)  # type: ignore[arg-type]
        assert "If" in {each.op_type for each in onnx.load(path).graph.node}
    write_mock(gm, {"conv": ("channel_svd", (4,))}, tmp_path / "mock.onnx")
    kinds = [each.op_type for each in onnx.load(tmp_path / "mock.onnx").graph.node]
    assert kinds == ["Conv", "Conv", "ReduceMean", "Greater", "If", "Conv"]


def test_shapes_that_a_file_states_wrongly_are_not_believed(tmp_path: Path) -> None:
    spectrum = helper.make_node("STFT", ["x", "hop", "window"], ["s"], onesided=1)
    nodes = [
        spectrum,
        helper.make_node("Shape", ["s"], ["shape"]),
        helper.make_node("Gather", ["shape", "two"], ["bins"]),
        helper.make_node("Range", ["zero", "bins", "one"], ["r"]),
        helper.make_node("Cast", ["r"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["s", "last"], ["t"], keepdims=0),
        helper.make_node("Mul", ["t", "f"], ["y"]),
    ]
    constants = {"hop": np.asarray(4), "window": np.ones(16, np.float32), "two": np.asarray(2)}
    constants |= {"zero": np.asarray(0), "one": np.asarray(1), "last": ints(-1)}
    path = write(tmp_path / "a.onnx", nodes, constants, shape=(1, 64))
    model = onnx.load(path)
    model.graph.value_info.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, (1, 13, 16, 2)))
    onnx.save(model, path)
    imported = from_onnx(path)
    found = imported.gm(*imported.example_inputs)
    assert found.shape[-1] == 9


def test_whole_numbers_of_a_shape_keep_their_type(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Cast", ["s"], ["i"], to=TensorProto.INT32),
        helper.make_node("CumSum", ["i", "axis"], ["y"]),
    ]
    path = write(tmp_path / "a.onnx", nodes, {"axis": np.asarray(0)}, shape=("n", 4, "h"))
    imported = from_onnx(path, shapes=[(2, 4, 3)])
    assert imported.gm(*imported.example_inputs).dtype is torch.int32


def test_a_leaf_that_grows_is_another_leaf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of a batch in an order, as packed sequences are; nothing has to be repaired."""
    monkeypatch.setattr(OnnxOrigin, "carrying_more", lambda *_: None)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("ReduceMean", ["a", "axes"], ["m"], keepdims=0),
        helper.make_node("Shape", ["m"], ["k"]),
        helper.make_node("TopK", ["m", "k"], ["best", "places"]),
        helper.make_node("Gather", ["a", "places"], ["y"]),
    ]
    path = write(tmp_path / "a.onnx", nodes, CONV | {"axes": ints(1, 2, 3)}, shape=("n", 4, 6, 8))
    assert from_onnx(path, shapes=[(2, 4, 6, 8)]).carried == ("TopK, Gather",)


def test_an_lstm_in_a_branch_that_was_decided_stays(tmp_path: Path) -> None:
    """As torch's exporter writes a squeeze of an axis of open length, with what stands behind it."""
    inner = [
        helper.make_node("Transpose", ["a"], ["p"], perm=[2, 0, 1]),
        helper.make_node("LSTM", ["p", "u", "r"], ["t"], "inner", hidden_size=16),
    ]
    otherwise = [helper.make_node("Unsqueeze", ["a", "axes"], ["e"])]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Shape", ["a"], ["s"]),
        helper.make_node("Gather", ["s", "two"], ["n"]),
        helper.make_node("Equal", ["n", "six"], ["q"]),
        helper.make_node(
            "If", ["q"], ["b"], then_branch=branch("then", *inner), else_branch=branch("else", *otherwise)
        ),
        helper.make_node("MatMul", ["b", "v"], ["y"]),
    ]
    constants = {"w": drawn(16, 4, 3), "u": drawn(1, 64, 16), "r": drawn(1, 64, 16), "v": drawn(16, 16)}
    constants |= {"two": np.asarray(2), "six": np.asarray(6), "axes": ints(0)}
    path = write(tmp_path / "a.onnx", nodes, constants, shape=("n", 4, "t"))
    imported = from_onnx(path, shapes=[(1, 4, 8)])
    assert imported.carried == ()
    gm = fxdecomp.trace(imported.gm, imported.example_inputs)
    small = fxdecomp.transform(gm, Policy(method="svd", rank=Ratio(0.5), require_saving=False))
    told = fxdecomp.report(small)
    assert [each.reason for each in told.skipped if each.site == "_inner"] == [Reason.IN_BRANCH]
    assert len(told.applied) == 1
    written = to_onnx(small, imported.example_inputs, tmp_path / "b.onnx")
    assert not any("was not used" in note for note in written.notes)
    assert "If" in {each.op_type for each in onnx.load(tmp_path / "b.onnx").graph.node}


def test_sizes_among_the_values_are_pickled(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Cast", ["s"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("ReduceMean", ["a"], ["m"], keepdims=0),
        helper.make_node("Mul", ["f", "m"], ["y"]),
    ]
    gm = from_onnx(write(tmp_path / "a.onnx", nodes, CONV, shape=("n", 4, 6, 8)), shapes=[(2, 4, 6, 8)]).gm
    x = torch.from_numpy(drawn(3, 4, 6, 8))
    assert torch.equal(pickle.loads(pickle.dumps(gm))(x), gm(x))
