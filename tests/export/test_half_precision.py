"""fp16 of what ONNX Runtime cannot run in half precision."""

import subprocess
import sys
from pathlib import Path

import onnx

SCRIPT = """
import sys, torch, fxdecomp
from torch import nn

class Turned(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.turn = nn.LSTM(8, 8, batch_first=True) if kind == "recurrent" else None
        self.head = nn.Linear(8, 4)
    def forward(self, x):
        return self.head(self.turn(x)[0] if self.turn else x.transpose(0, 1))

example = torch.randn(2, 5, 8)
for kind in ("transposed", "recurrent"):
    path = f"{sys.argv[1]}/{kind}.onnx"
    fxdecomp.export.to_onnx(fxdecomp.trace(Turned(kind), example), example, path, quantize="fp16")
"""


def test_a_transpose_before_a_product_does_not_end_the_process(tmp_path: Path) -> None:
    # In a process of its own: what failed was a segmentation fault.
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], check=True, timeout=300)
    for kind in ("transposed", "recurrent"):
        graph = onnx.load(tmp_path / f"{kind}.onnx").graph
        weight = next(item for item in graph.initializer if item.name.startswith("head.weight"))
        assert weight.data_type == 10
