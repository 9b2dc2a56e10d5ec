"""The picture in the README: what each layer of the demo's recogniser takes, before and after.

    python -m benchmarks.picture docs/pictures/demo-layers.png

Multiply-accumulates, which are the same on every machine; `fxdecomp demo` draws the times of its own run
(`layers.png` in its folder).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

import fxdecomp
from fxdecomp.demo.lines import WIDTH
from fxdecomp.demo.recogniser import load_recogniser
from fxdecomp.demo.running import DEMO_POLICY


def main(path: Path) -> None:
    gm = fxdecomp.trace(load_recogniser(), torch.zeros(1, 1, 64, WIDTH))
    told = fxdecomp.report(fxdecomp.transform(gm, DEMO_POLICY))
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    told.plot_layers(figure.subplots()).set_title(told.summary, fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
