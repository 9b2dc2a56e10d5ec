"""Lower precisions: what the tolerance goes by, which batches fit, which values cannot be halved."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import fxdecomp
from fxdecomp import ExportError, ParityError
from fxdecomp.export import check_parity, to_onnx
from fxdecomp.export.running import overflowing_nodes
from fxdecomp.importing import from_onnx
from tests.nets import drawn, image


def convolutions() -> nn.Sequential:
    return drawn(nn.Sequential(nn.Conv2d(4, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3))).eval()


class Mixed(nn.Module):
    """Half inside, float at the ends."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.net, self.dtype = convolutions().to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.to(self.dtype)).float()


def test_the_tolerance_goes_by_the_lowest_precision_on_the_way(tmp_path: Path) -> None:
    x = image(2, 4, 16, 16)
    gm = fxdecomp.trace(Mixed(torch.float16), x)
    report = to_onnx(gm, x, tmp_path / "a.onnx")
    assert 1e-4 < report.max_relative < 2e-2
    model = onnx.load(str(tmp_path / "a.onnx"))
    weight = next(item for item in model.graph.initializer if len(item.dims) == 4)
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0] *= 1.1
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, str(tmp_path / "a.onnx"))
    with pytest.raises(ParityError, match=r"tolerance 0\.02 for float16"):
        check_parity(gm, tmp_path / "a.onnx", [x])


def test_in_float_it_is_as_tight_as_before(tmp_path: Path) -> None:
    net, x = convolutions(), image(2, 4, 16, 16)
    to_onnx(fxdecomp.trace(net, x), x, tmp_path / "a.onnx")
    with torch.no_grad():
        net[0].weight.mul_(1.001)
    with pytest.raises(ParityError, match=r"tolerance 0\.0001 for float32"):
        check_parity(fxdecomp.trace(net, x), tmp_path / "a.onnx", [x])


def test_a_file_of_our_own_in_half_precision_comes_back(tmp_path: Path) -> None:
    x = image(2, 4, 16, 16)
    to_onnx(fxdecomp.trace(convolutions(), x), x, tmp_path / "a.onnx", quantize="fp16")
    imported = from_onnx(tmp_path / "a.onnx")
    assert {p.dtype for p in imported.gm.parameters()} == {torch.float16}
    assert 0 < max(row.max_relative for row in imported.parity) < 2e-2


@pytest.mark.parametrize("quantize", ["int8", "fp16"])
def test_a_smaller_last_batch_is_left_out_where_the_file_is_fixed(quantize: Any, tmp_path: Path) -> None:
    x = image(4, 4, 16, 16)
    gm = fxdecomp.trace(convolutions(), x)
    batches = [image(rows, 4, 16, 16, seed=rows + i) for i, rows in enumerate((4, 4, 4, 3))]
    options: dict[str, Any] = {"quantize": quantize, "dynamic_batch": False}
    report = to_onnx(gm, x, tmp_path / "a.onnx", calibration=batches, **options)
    assert report.notes == (
        "1 of 4 calibration batches were left out; calibration batch 3: input 'input' has 3 at axis 0, "
        "where the file is fixed to 4",
    )
    whole = to_onnx(gm, x, tmp_path / "b.onnx", calibration=batches[:3], **options)
    assert report.quantization == whole.quantization
    free = to_onnx(gm, x, tmp_path / "c.onnx", calibration=batches, quantize=quantize)
    assert free.notes == ()


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ((3, 4, 16, 16), "has 3 at axis 0, where the file is fixed to 4"),
        ((4, 4, 16, 20), "has 20 at axis 3, where the file is fixed to 16"),
    ],
)
@pytest.mark.parametrize("quantize", ["int8", "fp16"])
def test_batches_none_of_which_fits_are_one_error(
    quantize: Any, shape: tuple[int, ...], told: str, tmp_path: Path
) -> None:
    x = image(4, 4, 16, 16)
    gm = fxdecomp.trace(convolutions(), x)
    with pytest.raises(ExportError, match=f"^calibration batch 0: input 'input' {told}, as in every other"):
        to_onnx(
            gm,
            x,
            tmp_path / "a.onnx",
            dynamic_batch=False,
            quantize=quantize,
            calibration=[image(*shape)] * 2,
        )
    assert not list(tmp_path.iterdir())


class Step(nn.Module):
    """Angles of a time step: whole numbers above 2048, which fp16 does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(16, 16)
        self.register_buffer("frequencies", torch.exp(-torch.arange(8) * 1.15))

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None].float() * self.frequencies
        return self.out(torch.cat([angles.sin(), angles.cos()], -1))


def test_sines_of_large_angles_stay_in_fp32_with_what_feeds_them(tmp_path: Path) -> None:
    net, t = drawn(Step()), torch.arange(1, 4096, 511)
    report = to_onnx(fxdecomp.trace(net, t), t, tmp_path / "a.onnx", quantize="fp16")
    assert report.quantization is not None
    assert report.quantization.error < 2e-3
    assert report.quantization.kept == ()
    weights = {item.name: item.data_type for item in onnx.load(str(tmp_path / "a.onnx")).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in weights.values()  # the layer is halved all the same
    odd = torch.tensor([2049, 4001])
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    got = session.run(None, {session.get_inputs()[0].name: odd.numpy()})[0]
    np.testing.assert_allclose(got, net(odd).detach().numpy(), atol=2e-3)


def test_a_value_that_is_a_sequence_is_looked_into(tmp_path: Path) -> None:
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (2, 4)) for name in "xy"]
    nodes = [
        onnx.helper.make_node("SplitToSequence", ["x"], ["parts"], "split", axis=0),
        onnx.helper.make_node("ConcatFromSequence", ["parts"], ["y"], "join", axis=0),
    ]
    opset = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:]), opset_imports=opset, ir_version=9
    )
    onnx.save(model, str(tmp_path / "a.onnx"))
    large = {"x": np.full((2, 4), 5e4, np.float32)}
    assert overflowing_nodes(tmp_path / "a.onnx", [large], 1e4) == {"split", "join"}
    assert overflowing_nodes(tmp_path / "a.onnx", [large], 1e5) == set()
