"""int8 and fp16: what is quantised, what it costs, and what stays in fp32."""

import platform
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxdecomp.errors import ExportError
from fxdecomp.export import Fp16, Int8, benchmark, int8, read_metadata, to_onnx
from fxdecomp.export.balancing import linear_pairs
from fxdecomp.export.quantization import lower_precision, split_batches
from fxdecomp.export.running import outputs_of, relative_distance
from fxdecomp.progress import silent

from .nets import Convolutional, Recurrent, Residual, traced, tucker_chain


def batches(count: int, *shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(*shape, generator=generator) for _ in range(count)]


def op_types(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def distance(gm: GraphModule, path: Path, inputs: list[Tensor], name: str = "x") -> float:
    with torch.no_grad():
        wanted = [[gm(value).numpy()] for value in inputs]
    return relative_distance(wanted, outputs_of(path, [{name: value.numpy()} for value in inputs]))


def test_int8_is_close_names_its_price_and_leaves_no_float_layer(tmp_path: Path) -> None:
    gm, data = traced(Convolutional()), batches(8, 4, 3, 16, 16)
    report = to_onnx(gm, data[0], tmp_path / "int8.onnx", quantize="int8", calibration=data)
    found = report.quantization
    assert found is not None
    assert (found.kind, found.kept, found.balanced) == ("int8", (), 6)
    assert 0 < found.error < 0.05
    # Fresh inputs, another batch size: the error is what the report says it is.
    fresh = [torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(9))]
    assert distance(gm, tmp_path / "int8.onnx", fresh) == pytest.approx(found.error, rel=0.5)
    model = onnx.load(tmp_path / "int8.onnx")
    weights = {item.name: item for item in model.graph.initializer}
    for name in ("features.0", "features.2.core", "features.4.vertical", "classifier.second"):
        assert weights[f"{name}.weight_quantized"].data_type == onnx.TensorProto.INT8
        scales = onnx.numpy_helper.to_array(weights[f"{name}.weight_scale"])
        assert scales.shape == (weights[f"{name}.weight_quantized"].dims[0],)  # one for each output channel
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    metadata = read_metadata(tmp_path / "int8.onnx")
    assert metadata is not None
    assert metadata.quantization == found
    kernels = benchmark({"a": tmp_path / "int8.onnx"}, rounds=2).kernels["a"]
    pixels = 16 * 16
    macs = {row.name: row.macs for row in kernels}
    assert macs["features.2.core"] == 8 * 8 * 9 * pixels
    assert macs["features.0"] == 16 * 3 * 9 * pixels
    assert macs["classifier.first"] == 8 * 32


def test_seven_bits_are_for_machines_whose_products_saturate(tmp_path: Path) -> None:
    gm, data = traced(Convolutional()), batches(4, 4, 3, 16, 16)
    largest = {}
    for bits in (7, 8):
        path = tmp_path / f"{bits}.onnx"
        report = to_onnx(gm, data[0], path, quantize=Int8(weight_bits=bits, max_error=0.5), calibration=data)
        assert report.quantization.weight_bits == bits
        weights = {item.name: item for item in onnx.load(path).graph.initializer}
        values = onnx.numpy_helper.to_array(weights["features.0.weight_quantized"])
        largest[bits] = int(np.abs(values.astype(int)).max())
    assert largest == {7: 64, 8: 127}


@pytest.mark.parametrize(
    ("processor", "features", "bits"),
    [
        ("x86_64", ["avx2"], 7),
        ("x86_64", ["avx2", "avx512f", "avx512_vnni"], 8),
        ("AMD64", ["avx2", "avx_vnni"], 8),
        ("aarch64", ["asimddp"], 8),
    ],
)
def test_the_bits_of_the_weights_follow_the_processor(
    processor: str, features: list[str], bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "machine", lambda: {"features": features})
    monkeypatch.setattr(platform, "machine", lambda: processor)
    gm, data = traced(Residual()), batches(1, 2, 3, 8, 8)
    report = to_onnx(gm, data[0], tmp_path / "int8.onnx", quantize=Int8(max_error=0.5), calibration=data)
    assert report.quantization is not None
    assert report.quantization.weight_bits == bits


class Steep(nn.Module):
    """A chain whose inner channels fall off steeply, as those of a decomposition do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tucker_chain(16, 12, 16)


def steep() -> GraphModule:
    gm = traced(nn.Sequential(tucker_chain(16, 12, 16)))
    with torch.no_grad():
        fall = torch.logspace(0, -3, 12)
        gm.get_submodule("0.pointwise_in").weight.mul_(fall[:, None, None, None])
        gm.get_submodule("0.core").weight.div_(fall[None, :, None, None])
    return gm


def test_balancing_changes_nothing_in_fp32_and_much_in_int8(tmp_path: Path) -> None:
    gm, data = steep(), batches(8, 4, 16, 8, 8)
    errors = {}
    for balance in (False, True):
        path = tmp_path / f"{balance}.onnx"
        report = to_onnx(gm, data[0], path, quantize=Int8(balance=balance, max_error=10), calibration=data)
        assert report.max_relative < 1e-5  # the model that was quantised, against PyTorch
        assert report.quantization.balanced == (2 if balance else 0)
        errors[balance] = report.quantization.error
    assert errors[True] < 0.05
    assert errors[False] > 5 * errors[True]


def test_only_stages_that_feed_each_other_alone_and_directly_are_pairs(tmp_path: Path) -> None:
    to_onnx(traced(Convolutional()), batches(1, 1, 3, 16, 16)[0], tmp_path / "net.onnx")
    pairs = linear_pairs(onnx_ir.load(tmp_path / "net.onnx"))
    assert [(pair.before.name, pair.after.name) for pair in pairs] == [
        ("features.2.pointwise_in", "features.2.core"),
        ("features.2.core", "features.2.pointwise_out"),
        ("features.4.pointwise_in", "features.4.vertical"),
        ("features.4.vertical", "features.4.horizontal"),
        ("features.4.horizontal", "features.4.pointwise_out"),
        ("classifier.first", "classifier.second"),
    ]

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(4, 4, 1)
            self.second = nn.Conv2d(4, 4, 1)
            self.third = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            shared = self.first(x)
            seen = self.second(shared)
            return seen, self.third(seen), self.third(shared)

    to_onnx(traced(Branching()), torch.randn(1, 4, 5, 5), tmp_path / "net.onnx")
    assert linear_pairs(onnx_ir.load(tmp_path / "net.onnx")) == ()


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_balancing_is_exact_for_every_layout(tmp_path: Path, groups: int) -> None:
    net = nn.Sequential(
        nn.Conv2d(6, 8, 1),
        nn.Conv2d(8, 8, 3, groups=groups),
        nn.Conv2d(8, 4, 1),
        nn.Flatten(2),
        nn.Linear(9, 6),
    )
    gm = traced(nn.Sequential(*net, nn.Linear(6, 5, bias=False), nn.Linear(5, 3)))
    data = batches(4, 2, 6, 5, 5)
    report = to_onnx(gm, data[0], tmp_path / "a.onnx", quantize=Int8(max_error=1), calibration=data)
    assert report.quantization.balanced == 3
    assert report.max_relative < 1e-5


def fragile() -> GraphModule:
    """Its last chain computes small differences of large numbers, which 8 bits cannot hold."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sound = nn.Conv2d(4, 16, 3, padding=1)
            self.fragile = nn.Conv2d(16, 16, 1)
            self.last = nn.Conv2d(16, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.sound(x))
            return self.last(torch.relu(self.fragile(x)))

    gm = traced(Net())
    with torch.no_grad():
        # Large values go in pairs and cancel in the last layer.
        gm.get_submodule("fragile").weight[8:] = gm.get_submodule("fragile").weight[:8]
        gm.get_submodule("fragile").weight.mul_(50)
        gm.get_submodule("last").weight[:, 8:] = -gm.get_submodule("last").weight[:, :8]
        gm.get_submodule("last").weight[:, 8:].add_(0.01 * torch.randn(4, 8, 1, 1))
    return gm


def test_stages_that_cannot_bear_int8_stay_in_fp32(tmp_path: Path) -> None:
    gm, data = fragile(), batches(8, 4, 4, 12, 12)
    steps: list[tuple[int, int]] = []
    report = to_onnx(
        gm,
        data[0],
        tmp_path / "a.onnx",
        quantize=Int8(max_error=0.05),
        calibration=data,
        progress=lambda _, done, total: steps.append((done, total)),
    )
    found = report.quantization
    alone = dict(found.alone)
    assert set(alone) == {"sound", "fragile", "last"}
    assert "last" in found.kept
    assert "sound" not in found.kept or "fragile" not in found.kept
    assert list(found.kept) == sorted(found.kept, key=lambda name: -alone[name])
    assert found.error <= 0.05
    assert steps == [(1, 3), (2, 3), (3, 3)]
    weights = {item.name for item in onnx.load(tmp_path / "a.onnx").graph.initializer}
    for name in alone:
        assert (f"{name}.weight" in weights) == (name in found.kept)
    assert "in fp32 stay last" in str(report)


def test_as_few_stages_as_it_takes_are_kept() -> None:
    harm = {"a": 0.3, "b": 0.4, "c": 0.05, "d": 0.05}
    tried = []

    def error_of(stages: list[str]) -> float:
        tried.append(tuple(stages))
        return sum(harm[stage] ** 2 for stage in stages) ** 0.5

    found = lower_precision("int8", list(harm), error_of, 0.1, silent)
    assert found.kept == ("b", "a")
    assert tried[-1] == ("c", "d")
    assert found.error == pytest.approx(0.05 * 2**0.5)
    assert lower_precision("int8", list(harm), error_of, 0.31, silent).kept == ("b",)
    assert lower_precision("int8", list(harm), error_of, 1.0, silent).alone == ()
    with pytest.raises(ExportError, match=r"int8 costs an error of 0.505.*max_error=0.01"):
        lower_precision("int8", list(harm), error_of, 0.01, silent)


def test_the_error_is_measured_on_batches_that_set_no_range() -> None:
    feeds = [{"x": np.full(1, index)} for index in range(8)]
    calibration, held_out = split_batches(feeds)
    assert (len(calibration), len(held_out)) == (6, 2)
    assert split_batches(feeds[:1]) == (feeds[:1], feeds[:1])
    assert [len(part) for part in split_batches(feeds[:2])] == [1, 1]


def test_residual_and_recurrent_networks_are_quantised(tmp_path: Path) -> None:
    data = batches(8, 4, 3, 16, 16)
    report = to_onnx(traced(Residual()), data[0], tmp_path / "a.onnx", quantize="int8", calibration=data)
    assert report.quantization.kept == ()
    lines = batches(8, 4, 1, 16, 24)
    report = to_onnx(
        traced(Recurrent()),
        lines[0],
        tmp_path / "b.onnx",
        quantize="int8",
        calibration=lines,
        dynamic_axes=(3,),
    )
    assert report.quantization.kept == ()
    graph = onnx.load(tmp_path / "b.onnx").graph
    # The shape of the image is read from the image itself.
    assert next(node for node in graph.node if node.op_type == "Shape").input[0] == "image"
    # The bias of a linear layer over three axes is added in fp32.
    assert "head.bias" in {item.name for item in graph.initializer}


def test_fp16_halves_the_file_and_keeps_fp32_at_its_ends(tmp_path: Path) -> None:
    gm, example = traced(Convolutional()), batches(1, 2, 3, 16, 16)[0]
    report = to_onnx(gm, example, tmp_path / "a.onnx", quantize="fp16")
    assert report.quantization.kept == ()
    assert 0 < report.quantization.error < 0.002
    graph = onnx.load(tmp_path / "a.onnx").graph
    assert {item.data_type for item in graph.initializer if item.name.endswith("weight")} == {
        onnx.TensorProto.FLOAT16
    }
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert distance(gm, tmp_path / "a.onnx", [example]) == pytest.approx(report.quantization.error, rel=1)


def test_fp16_leaves_what_would_overflow_in_fp32(tmp_path: Path) -> None:
    gm, example = traced(Convolutional()), batches(1, 2, 3, 16, 16)[0]
    with torch.no_grad():
        gm.get_submodule("features.2.pointwise_in").weight.mul_(1e5)
        gm.get_submodule("features.2.core").weight.mul_(1e-5)
    report = to_onnx(gm, example, tmp_path / "a.onnx", quantize=Fp16(max_error=0.005))
    assert report.quantization.kept == ("features.2.pointwise_in", "features.2.core")
    assert report.quantization.error < 0.005
    assert distance(gm, tmp_path / "a.onnx", [example]) < 0.005


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    gm, example = traced(Convolutional()), batches(1, 1, 3, 16, 16)[0]
    with pytest.raises(ExportError, match="give calibration="):
        to_onnx(gm, example, tmp_path / "a.onnx", quantize="int8")
    with pytest.raises(ExportError, match="quantize is 'int4'; wanted 'int8', 'fp16'"):
        to_onnx(gm, example, tmp_path / "a.onnx", quantize="int4", calibration=[example])  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="max_error is 0; wanted a number above 0"):
        Int8(max_error=0)
    with pytest.raises(ExportError, match="weight_bits is 4; wanted 7 or 8"):
        Int8(weight_bits=4)
    with pytest.raises(ExportError, match="there is nothing to quantise"):
        to_onnx(
            traced(nn.Sequential(nn.ReLU())),
            example,
            tmp_path / "a.onnx",
            quantize="int8",
            calibration=[example],
        )
    assert list(tmp_path.iterdir()) == []


def recurrent_cells(path: Path) -> list[tuple[str, str]]:
    return [(node.name, node.op_type) for node in onnx.load(path).graph.node if "LSTM" in node.op_type]


def test_an_lstm_is_quantised_as_it_runs_unless_the_file_is_for_other_providers(tmp_path: Path) -> None:
    gm, data = traced(Recurrent(hidden=64)), batches(8, 4, 1, 16, 24)
    found = {}
    for recurrent in (True, False):
        path = tmp_path / f"{recurrent}.onnx"
        options = Int8(recurrent=recurrent)
        report = to_onnx(gm, data[0], path, quantize=options, calibration=data)
        assert report.quantization.kept == ()
        found[recurrent] = report
    assert recurrent_cells(tmp_path / "True.onnx") == [("rnn", "DynamicQuantizeLSTM")]
    assert recurrent_cells(tmp_path / "False.onnx") == [("rnn", "LSTM")]
    weights = {item.name: item for item in onnx.load(tmp_path / "True.onnx").graph.initializer}
    assert weights["rnn.R_quantized"].data_type == onnx.TensorProto.INT8
    assert list(weights["rnn.R_scale"].dims) == [2, 4 * 64]  # one for each direction and gate
    assert "rnn.R" not in weights
    assert found[False].quantization.error < found[True].quantization.error < 0.03
    assert found[True].size_bytes < 0.5 * found[False].size_bytes
    rows = benchmark({"a": tmp_path / "True.onnx"}, rounds=2).kernels["a"]
    assert {row.name: row.macs for row in rows}["rnn"] == 4 * 24 * 2 * 4 * 64 * (16 + 64) // 4


def test_lstms_that_share_a_weight_stay_in_fp32(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(8, 8, batch_first=True)
            self.head = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(self.rnn(x)[0])[0])

    data = batches(4, 2, 5, 8)
    to_onnx(traced(Twice()), data[0], tmp_path / "a.onnx", quantize="int8", calibration=data)
    assert [op for _, op in recurrent_cells(tmp_path / "a.onnx")] == ["LSTM", "LSTM"]
