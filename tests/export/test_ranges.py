"""The ranges that an int8 file holds, against what its values are."""

from pathlib import Path

import pytest
import torch
from torch import nn

import fxdecomp
from fxdecomp.export import Int8, to_onnx
from fxdecomp.export.ranges import activation_ranges
from tests.nets import drawn


def test_ranges_hold_the_calibration_and_have_the_layers_names(tmp_path: Path) -> None:
    net = drawn(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)))
    batches = [3 * torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(k)) for k in range(4)]
    gm = fxdecomp.trace(net, batches[0])
    exact, lower = tmp_path / "exact.onnx", tmp_path / "lower.onnx"
    to_onnx(gm, batches[0], exact)
    to_onnx(gm, batches[0], lower, quantize=Int8(max_error=1.0, balance=False), calibration=batches)
    assert activation_ranges(exact) == ()
    ranges = {each.name: each for each in activation_ranges(lower)}
    seen = torch.cat(batches[:3])  # the last quarter measures the error
    with torch.no_grad():
        spans = [seen, net[1](net[0](seen))]
    for found, value in zip(list(ranges.values())[:2], spans, strict=True):
        assert found.low <= min(0.0, float(value.min())) + found.step
        assert found.high == pytest.approx(float(value.max()), rel=0.02)
        assert found.step == pytest.approx((found.high - found.low) / 255)
    assert len(ranges) >= 2
