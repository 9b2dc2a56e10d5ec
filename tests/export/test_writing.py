import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from onnxscript import optimizer
from onnxscript.rewriter.rules.common import slice_split_rule
from torch import Tensor, nn

from fxdecomp.errors import ExportError, ParityError
from fxdecomp.export import check_parity, drafting, read_metadata, sessions, to_onnx
from fxdecomp.export.exporter import slices_at_slices
from fxdecomp.graphs.records import record_of

from .nets import Convolutional, Recurrent, traced, with_record


def image(batch: int = 1, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, 16, 16, generator=torch.Generator().manual_seed(7))


def test_names_follow_sites_and_stages(tmp_path: Path) -> None:
    report = to_onnx(traced(Convolutional()), image(), tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert [node.name for node in layers] == [
        "features.0",
        "features.2.pointwise_in",
        "features.2.core",
        "features.2.pointwise_out",
        "features.4.pointwise_in",
        "features.4.vertical",
        "features.4.horizontal",
        "features.4.pointwise_out",
        "classifier.first",
        "classifier.second",
    ]
    for node in layers:
        assert node.input[1] == f"{node.name}.weight"
        assert list(node.input[2:]) in ([], [f"{node.name}.bias"])
    assert {node.op_type for node in model.graph.node} == {"Conv", "Relu", "ReduceMean", "Gemm"}
    assert (report.inputs, report.outputs) == (("x",), ("output",))
    assert report.dynamic_batch
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert report.max_relative < 1e-5
    # Four inputs (the example, two like it, batch 2), with optimisations off and on.
    assert len(report.parity) == 8
    assert {row.shapes[0][0] for row in report.parity} == {1, 2}
    assert report.size_bytes == (tmp_path / "net.onnx").stat().st_size


SLICES = """<ir_version: 10, opset_import: ["" : 18]>
halves (float[2, 8] x) => (float[2, 4] output)
<int64[1] zero = {0}, int64[1] four = {4}, int64[1] eight = {8}, int64[1] axis = {1}> {
    y = Relu(x)
    left = Slice(y, zero, four, axis)
    right = Slice(y, four, eight, axis)
    output = Mul(left, right)
}"""


def test_two_slices_are_looked_for_at_slices_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    look = slice_split_rule.match

    def match(model: object, graph: object, node: onnx_ir.Node, **options: object) -> object:
        seen.append(node.op_type)
        return look(model, graph, node, **options)

    monkeypatch.setattr(slice_split_rule, "match", match)
    model = onnx_ir.from_onnx_text(SLICES)
    with slices_at_slices():
        optimizer.optimize_ir(model)
        assert set(seen) == {"Slice"}
        with ThreadPoolExecutor(1) as others:  # whose optimiser stays as it is
            others.submit(optimizer.optimize_ir, onnx_ir.from_onnx_text(SLICES)).result()
    assert set(seen) > {"Slice"}
    assert "try_rewrite" not in vars(slice_split_rule)


def test_weights_that_the_exporter_computes_keep_their_names(tmp_path: Path) -> None:
    report = to_onnx(traced(Recurrent()), image(channels=1), tmp_path / "net.onnx")
    graph = onnx.load(tmp_path / "net.onnx").graph
    inputs = {node.name: list(node.input) for node in graph.node}
    assert inputs["head"][1] == "head.weight_transposed"
    assert inputs["rnn"][1:4] == ["rnn.W", "rnn.R", "rnn.B"]
    assert report.outputs == ("scores", "best")
    assert [output.name for output in graph.output] == ["scores", "best"]


def test_large_weights_are_rearranged_once_and_not_at_every_run(tmp_path: Path) -> None:
    to_onnx(traced(Recurrent(hidden=96)), image(channels=1), tmp_path / "large.onnx")
    to_onnx(traced(Recurrent()), image(channels=1), tmp_path / "small.onnx")
    large, small = (onnx.load(tmp_path / f"{name}.onnx").graph for name in ("large", "small"))
    assert [node.op_type for node in large.node] == [node.op_type for node in small.node]
    rnn = next(node for node in large.node if node.name == "rnn")
    assert list(rnn.input[1:4]) == ["rnn.W", "rnn.R", "rnn.B"]

    class Tied(nn.Module):
        """Two layers over three axes with one large weight."""

        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(128, 128)
            self.second = nn.Linear(128, 128)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.relu(self.first(x)))

    to_onnx(traced(Tied()), torch.randn(1, 4, 128), tmp_path / "tied.onnx")
    graph = onnx.load(tmp_path / "tied.onnx").graph
    assert [node.op_type for node in graph.node] == ["MatMul", "Add", "Relu", "MatMul", "Add"]
    assert (
        sum(item.dims[0] * (item.dims[1] if len(item.dims) > 1 else 1) for item in graph.initializer) < 17_000
    )


def test_an_aten_graph_gives_the_same_file_structure(tmp_path: Path) -> None:
    net = traced(Convolutional())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            net, (image(2),), dynamic_shapes={"x": {0: torch.export.Dim("batch")}}
        ).module()
    to_onnx(net, image(), tmp_path / "fx.onnx")
    report = to_onnx(program, image(), tmp_path / "aten.onnx")
    assert report.dynamic_batch
    fx, aten = (onnx.load(tmp_path / f"{name}.onnx").graph for name in ("fx", "aten"))
    layers = [[n.name for n in graph.node if n.op_type in ("Conv", "Gemm")] for graph in (fx, aten)]
    assert layers[0] == layers[1]
    assert [i.name for i in fx.initializer] == [i.name for i in aten.initializer]


def test_a_batch_that_the_graph_fixes_is_a_note_unless_it_was_asked_for(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).reshape(3, 4)

    gm = traced(Fixed())
    report = to_onnx(gm, torch.randn(3, 8), tmp_path / "fixed.onnx")
    assert not report.dynamic_batch
    assert "PyTorch fails at batch 4" in report.notes[0]
    assert "note: the batch size is fixed" in str(report)
    with pytest.raises(
        ExportError, match=r"cannot be dynamic: PyTorch fails at batch 4.*dynamic_batch=False"
    ):
        to_onnx(gm, torch.randn(3, 8), tmp_path / "no.onnx", dynamic_batch=True)
    assert to_onnx(gm, torch.randn(3, 8), tmp_path / "fixed.onnx", dynamic_batch=False).notes == ()
    assert not (tmp_path / "no.onnx").exists()


def test_image_axes_can_be_free(tmp_path: Path) -> None:
    report = to_onnx(traced(Convolutional()), image(), tmp_path / "net.onnx", dynamic_axes=(2, 3))
    dims = onnx.load(tmp_path / "net.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 3, "height", "width"]
    assert (1, 3, 20, 20) in {row.shapes[0] for row in report.parity}
    with pytest.raises(ExportError, match="dynamic axis 4: the inputs have axes 1 to 3"):
        to_onnx(traced(Convolutional()), image(), tmp_path / "net.onnx", dynamic_axes=(4,))


def test_the_graph_is_left_as_it_was(tmp_path: Path) -> None:
    gm = traced(Recurrent())
    gm.train()
    before = {name: value.clone() for name, value in gm.state_dict().items()}
    code = gm.code
    to_onnx(gm, image(channels=1), tmp_path / "net.onnx")
    assert gm.code == code
    assert all(module.training for module in gm.modules())
    assert all(torch.equal(value, before[name]) for name, value in gm.state_dict().items())
    gm.eval()(image(2, channels=1))["scores"].sum().backward()


def test_the_same_graph_gives_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        to_onnx(with_record(traced(Convolutional())), image(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert str(Path(__file__).parent).encode() not in (tmp_path / "a").read_bytes()


def test_the_file_tells_what_was_done_to_it(tmp_path: Path) -> None:
    gm = with_record(traced(Convolutional()))
    report = to_onnx(gm, image(), tmp_path / "net.onnx")
    metadata = read_metadata(tmp_path / "net.onnx")
    assert metadata is not None
    assert metadata.record == record_of(gm)
    assert metadata.opset == report.opset
    assert metadata.inputs == {"x": (1, 3, 16, 16)}
    assert metadata.torch_version == torch.__version__
    model = onnx.load(tmp_path / "net.onnx")
    next(p for p in model.metadata_props if p.key == "fxdecomp.record").value += " "
    onnx.save(model, tmp_path / "altered.onnx")
    with pytest.raises(ExportError, match="does not match its digest"):
        read_metadata(tmp_path / "altered.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    assert read_metadata(tmp_path / "foreign.onnx") is None


def test_opset_is_chosen_and_recorded(tmp_path: Path) -> None:
    report = to_onnx(traced(Convolutional()), image(), tmp_path / "net.onnx", opset=18)
    assert report.opset == 18
    assert onnx.load(tmp_path / "net.onnx").opset_import[0].version == 18


def test_one_corrupted_initialiser_fails_the_comparison(tmp_path: Path) -> None:
    gm = traced(Convolutional())
    path = tmp_path / "net.onnx"
    to_onnx(gm, image(), path)
    model = onnx.load(path)
    weight = next(item for item in model.graph.initializer if item.name == "features.2.core.weight")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0, 1, 1] += 0.5
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)
    with pytest.raises(ParityError) as caught:
        check_parity(gm, path, [image()])
    message = str(caught.value)
    for part in (
        "output 'output' with ONNX Runtime's optimisations off",
        "inputs ((1, 3, 16, 16),)",
        "at index (0, ",
        "PyTorch gives",
        "largest absolute difference",
        "largest relative difference",
        "tolerance 0.0001 for float32",
    ):
        assert part in message


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_on_one_side_only_fails(tmp_path: Path, bad: float) -> None:
    gm = traced(nn.Sequential(nn.Linear(4, 3)))
    path = tmp_path / "net.onnx"
    to_onnx(gm, torch.randn(2, 4), path)
    with torch.no_grad():
        gm.get_submodule("0").bias[1] = bad
    with pytest.raises(ParityError, match=r"index \(\d, 1\) PyTorch gives (nan|inf)"):
        check_parity(gm, path, [torch.randn(2, 4)])
    to_onnx(gm, torch.randn(2, 4), path)


def test_a_failed_comparison_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.onnx"
    to_onnx(traced(Convolutional()), image(), path)
    before = path.read_bytes()

    def corrupt(gm: torch.fx.GraphModule, draft: Path, inputs: list[tuple[Tensor, ...]]) -> object:
        gm.get_submodule("features.0").weight.data.mul_(1.01)
        return check_parity(gm, draft, inputs)

    monkeypatch.setattr(drafting, "check_parity", corrupt)
    with pytest.raises(ParityError):
        to_onnx(traced(Convolutional(), seed=1), image(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_process_leaves_no_file(tmp_path: Path) -> None:
    script = f"""
import os, signal, torch
import onnxruntime, onnxscript.function_libs.torch_lib.ops  # once for all children
from pathlib import Path
from torch import nn
from fxdecomp.export import drafting, writing

def killed_at(step, path):
    where = writing if step == "_publish" else drafting
    real = getattr(where, step)
    def die(*args):
        if step == "save_model":  # half of the file is on the disk
            real(*args)
            args[1].write_bytes(args[1].read_bytes()[:100])
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(where, step, die)
    writing.to_onnx(torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 3))), torch.ones(1, 4), path)

for step in ("save_model", "check_written", "check_parity", "_publish"):
    path = Path({str(tmp_path)!r}) / step
    child = os.fork()
    if child == 0:
        killed_at(step, path)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WTERMSIG(status) == signal.SIGKILL, (step, status)
    assert not path.exists(), step
"""
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ)
    # Each run clears what the ones before it left; only the last draft is still there.
    assert [file.name for file in tmp_path.glob(".*/*")] == ["_publish"]
    to_onnx(traced(nn.Sequential(nn.Linear(4, 3))), torch.ones(1, 4), tmp_path / "whole.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["whole.onnx"]


def test_large_weights_go_to_a_second_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafting, "EXTERNAL_DATA_BYTES", 1000)
    gm = with_record(traced(Convolutional()))
    path = tmp_path / "net.onnx"
    report = to_onnx(gm, image(), path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]
    assert report.size_bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert path.stat().st_size < 20_000
    check_parity(gm, path, [image(2)])
    assert read_metadata(path).record == record_of(gm)
    (tmp_path / "net.onnx.data").write_bytes(np.zeros(report.size_bytes, np.uint8).tobytes())
    with pytest.raises(ParityError):
        check_parity(gm, path, [image(2)])
    to_onnx(gm, image(), path)
    check_parity(gm, path, [image(2)])


def test_a_missing_runtime_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ExportError, match=r"install `fxdecomp\[cpu\]`"):
        to_onnx(traced(Convolutional()), image(), tmp_path / "net.onnx")
    with pytest.raises(ExportError, match=r"install `fxdecomp\[cpu\]`"):
        sessions.available_providers()


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    gm = traced(Convolutional())
    with pytest.raises(ExportError, match=r"the example inputs are 2 values; the network takes \(x\)"):
        to_onnx(gm, (image(), image()), tmp_path / "net.onnx")
    with pytest.raises(ExportError, match="the example inputs hold no tensor"):
        to_onnx(gm, (3,), tmp_path / "net.onnx")
    with pytest.raises(ExportError, match="PyTorch itself cannot run the graph on the example"):
        to_onnx(gm, image(channels=4), tmp_path / "net.onnx")
    with pytest.raises(ExportError, match="does not exist; create it first"):
        to_onnx(gm, image(), tmp_path / "no" / "net.onnx")


def test_the_runtime_is_imported_only_when_it_is_needed() -> None:
    script = (
        "import sys, fxdecomp.export\n"
        "assert not {'onnxruntime', 'onnx', 'matplotlib', 'typer', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ)


def test_inputs_and_outputs_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    report = to_onnx(
        traced(Recurrent()),
        image(channels=1),
        path,
        input_names=["input.1"],
        output_names=["conv2d", "image"],
    )
    assert (report.inputs, report.outputs) == (("input.1",), ("conv2d", "image"))
    graph = onnx.load(path).graph
    assert [value.name for value in [*graph.input, *graph.output]] == ["input.1", "conv2d", "image"]
    assert read_metadata(path).inputs == {"input.1": (1, 1, 16, 16)}
    with pytest.raises(ExportError, match=r"the model has 2 outputs, 1 names were given: \['a'\]"):
        to_onnx(traced(Recurrent()), image(channels=1), path, output_names=["a"])
    with pytest.raises(ExportError, match="two inputs or outputs are to be named 'a'"):
        to_onnx(traced(Recurrent()), image(channels=1), path, output_names=["a", "a"])
