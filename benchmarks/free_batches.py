"""Files with a free batch: what `to_onnx` and plain `torch.onnx.export` make of the same networks.

    python -m benchmarks.free_batches                  # a table
    python -m benchmarks.free_batches --names ViT BERT

Each network is exported from two rows with a free batch, and its file run at 1, 2 and 5 rows against PyTorch.
The networks are those of `benchmarks.transformers_zoo`, where the `transformers` package is there, and some
of PyTorch's own layers. Nothing is decomposed: this is about the export.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import fxdecomp
from benchmarks.transformers_zoo import FirstOutput, architectures
from benchmarks.zoo_networks import randomise

ROWS = (1, 2, 5)
TOLERANCE = 1e-3


class Patches(nn.Module):
    """An image in patches, and attention over them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of an image."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        scores: Tensor = self.head(self.attention(tokens, tokens, tokens)[0].mean(1))
        return scores


class Last(nn.Module):
    """What a recurrent layer gives."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """The outputs without the states."""
        result: Tensor = self.layer(x)[0]
        return result


def layers() -> dict[str, Callable[[], tuple[nn.Module, Tensor]]]:
    """Networks of PyTorch's own layers by name, with an input of two rows."""
    sequence = torch.randn(2, 9, 32)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    both = {"batch_first": True, "bidirectional": True}
    return {
        "nn.TransformerEncoder": lambda: (nn.TransformerEncoder(layer, 2), sequence),
        "patches, nn.MultiheadAttention": lambda: (Patches(), torch.randn(2, 3, 32, 32)),
        "nn.LSTM, both directions": lambda: (Last(nn.LSTM(32, 16, **both)), sequence),
        "nn.GRU": lambda: (Last(nn.GRU(32, 16, batch_first=True)), sequence),
    }


def networks() -> dict[str, Callable[[], tuple[nn.Module, Tensor]]]:
    """All of them; only PyTorch's own where there is no `transformers`."""

    def wrapped(make: Callable[[], tuple[nn.Module, Tensor]]) -> Callable[[], tuple[nn.Module, Tensor]]:
        def made() -> tuple[nn.Module, Tensor]:
            inner, x = make()
            return randomise(FirstOutput(inner)), x

        return made

    try:
        return {name: wrapped(make) for name, make in architectures().items()} | layers()
    except ImportError:
        return layers()


def ours(net: nn.Module, x: Tensor, path: Path) -> str:
    """What comes of `to_onnx`."""
    report = fxdecomp.export.to_onnx(fxdecomp.trace(net, x), x, path)
    return "" if report.dynamic_batch else f"fixed: {report.notes[0]}"


def plain(net: nn.Module, x: Tensor, path: Path) -> str:
    """What comes of `torch.onnx.export`."""
    shapes = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(net, (x,), path, dynamo=True, verbose=False, dynamic_shapes=shapes)
    return ""


def verdict(export: Callable[[nn.Module, Tensor, Path], str], net: nn.Module, x: Tensor) -> str:
    """Export a network and run its file at every number of rows."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder, "a.onnx")
        try:
            told = export(net, x, path)
            if told:
                return told
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            wrong = [rows for rows in ROWS if not _agrees(session, net, x[torch.arange(rows) % 2])]
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the verdict
            lines = str(error).strip().splitlines() or [""]
            return f"fails: {type(error).__name__}: {lines[0][:100]}"
    return f"wrong at {wrong}" if wrong else "free, right at 1, 2 and 5"


def _agrees(session: object, net: nn.Module, x: Tensor) -> bool:
    (name,) = (item.name for item in session.get_inputs())  # type: ignore[attr-defined]
    got = session.run(None, {name: x.numpy()})[0]  # type: ignore[attr-defined]
    wanted = net(x).numpy()
    return got.shape == wanted.shape and bool(np.abs(got - wanted).max() <= TOLERANCE * np.abs(wanted).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--names", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.backends.mha.set_fastpath_enabled(False)
    print("| network | `to_onnx` | `torch.onnx.export` |\n|---|---|---|")
    for name, make in networks().items():
        if options.names and name not in options.names:
            continue
        torch.manual_seed(0)
        net, x = make()
        print(f"| {name} | {verdict(ours, net.eval(), x)} | {verdict(plain, net.eval(), x)} |", flush=True)


if __name__ == "__main__":
    main()
