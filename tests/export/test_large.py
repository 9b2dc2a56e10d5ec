"""A model above 2 GiB, the end of what one ONNX file holds."""

import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from fxdecomp.export import read_metadata

_SCRIPT = """
import resource, sys
import torch
from torch import nn
import fxdecomp
from fxdecomp.export import to_onnx

# Two matrices of 1.03 GiB; zeros but for a few entries, which the comparison sees.
SIZE = 16640
net = nn.Sequential(*(nn.utils.skip_init(nn.Linear, SIZE, SIZE, bias=False) for _ in range(2)))
for layer in net:
    layer.weight.data = torch.zeros(SIZE, SIZE)
    layer.weight.data[:8, :8] = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
example = torch.randn(1, SIZE)
gm = fxdecomp.trace(net.eval(), example)
report = to_onnx(gm, example, sys.argv[1])
print(report.size_bytes, report.max_relative, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_weights_above_two_gibibytes_go_to_a_second_file_within_eight(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    command = [sys.executable, "-c", _SCRIPT, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    size, difference, peak = (float(word) for word in done.stdout.split())
    assert size > 2 * (1 << 30)
    assert difference < 1e-4
    assert peak < 8 * (1 << 30)
    assert path.stat().st_size < 100_000
    assert path.with_name("large.onnx.data").stat().st_size > 2 * (1 << 30)
    assert read_metadata(path) is not None
    graph = onnx.load(path, load_external_data=False).graph
    assert [node.op_type for node in graph.node] == ["Gemm"] * 2
