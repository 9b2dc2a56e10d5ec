"""A file says what it is: its precision, its operator set, the names of its ends."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import fxdecomp
from fxdecomp.errors import ExportError
from fxdecomp.export import to_onnx

from .nets import traced


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_float64_is_not_quantised(precision: str, tmp_path: Path) -> None:
    gm, x = traced(nn.Sequential(nn.Linear(8, 4))).double(), torch.randn(2, 8, dtype=torch.float64)
    with pytest.raises(ExportError, match=rf"{precision} is made of float32.*call .float\(\)"):
        to_onnx(gm, x, tmp_path / "a.onnx", quantize=precision, calibration=[x])
    assert not (tmp_path / "a.onnx").exists()


@pytest.mark.parametrize("opset", [7, 99])
def test_an_operator_set_that_the_exporter_does_not_write_is_refused(opset: int, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=rf"writes operator set \d+ where {opset} was asked for"):
        to_onnx(traced(nn.Sequential(nn.Linear(8, 4))), torch.randn(2, 8), tmp_path / "a.onnx", opset=opset)


class Both(nn.Module):
    """Gives its input back beside the result."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(x), x


def test_an_input_that_is_an_output_too_keeps_its_name(tmp_path: Path) -> None:
    report = to_onnx(traced(Both()), torch.randn(2, 8), tmp_path / "a.onnx")
    assert (report.inputs, report.outputs) == (("x",), ("output_0", "output_1"))
    assert [value.name for value in onnx.load(tmp_path / "a.onnx").graph.input] == ["x"]


class Named(nn.Module):
    """Only `torch.export` follows its condition."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if x.shape[1] > 4:
            x = x * 2
        return {"logits": self.head(x), "hidden": x}


def test_outputs_of_an_exported_program_are_named_by_their_keys(tmp_path: Path) -> None:
    x = torch.randn(2, 8)
    report = to_onnx(fxdecomp.trace(Named().eval(), x), x, tmp_path / "a.onnx")
    assert report.outputs == ("logits", "hidden")
