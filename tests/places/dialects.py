"""One network as the graphs that it may come as."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxdecomp
from fxdecomp.export import to_onnx
from fxdecomp.importing import from_onnx


def dialect(model: nn.Module, x: Tensor, name: str, folder: Path) -> tuple[GraphModule, Tensor]:
    """The graph of a tracer, of `torch.export` or of an ONNX file, and its input."""
    if name == "exported":
        return fxdecomp.trace(torch.export.export(model, (x,)), x), x
    gm = fxdecomp.trace(model, x)
    if name == "symbolic":
        return gm, x
    to_onnx(gm, x, folder / "net.onnx")
    imported = from_onnx(folder / "net.onnx", inputs=(x,))
    return fxdecomp.trace(imported.gm, imported.example_inputs), x
