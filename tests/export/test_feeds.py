"""Inputs that a file is timed with."""

from pathlib import Path

import torch
from torch import nn

from fxdecomp.export import benchmark, to_onnx

from .nets import traced


def test_the_length_of_a_named_first_axis_is_taken(tmp_path: Path) -> None:
    to_onnx(traced(nn.Sequential(nn.Linear(8, 4))), torch.randn(2, 8), tmp_path / "a.onnx")
    report = benchmark({"a": tmp_path / "a.onnx"}, axes={"batch": 7}, rounds=2)
    assert [timing.batch for timing in report.timings] == [7]
