"""fp16 of what ONNX Runtime cannot run in half precision."""

import subprocess
import sys
from pathlib import Path

import onnx
import pytest

SCRIPT = """
import sys, torch, fxdecomp
from torch import nn

class Turned(nn.Module):
    def __init__(self):
        super().__init__()
        self.turn = nn.LSTM(8, 8, batch_first=True) if sys.argv[1] == "recurrent" else None
        self.head = nn.Linear(8, 4)
    def forward(self, x):
        return self.head(self.turn(x)[0] if self.turn else x.transpose(0, 1))

example = torch.randn(2, 5, 8)
fxdecomp.export.to_onnx(fxdecomp.trace(Turned(), example), example, sys.argv[2], quantize="fp16")
"""


@pytest.mark.parametrize("kind", ["transposed", "recurrent"])
def test_a_transpose_before_a_product_does_not_end_the_process(kind: str, tmp_path: Path) -> None:
    # In a process of its own: what failed was a segmentation fault.
    path = tmp_path / "a.onnx"
    subprocess.run([sys.executable, "-c", SCRIPT, kind, str(path)], check=True, timeout=300)
    graph = onnx.load(path).graph
    assert next(item for item in graph.initializer if item.name.startswith("head.weight")).data_type == 10
