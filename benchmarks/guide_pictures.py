"""The pictures of the guides: spectra of some layers, and parts of a report page in Chromium.

    python -m benchmarks.guide_pictures docs/pictures

The spectra are of EasyOCR's recogniser; the page is that of a small network trained on scikit-learn's digits,
in float and int8, with its times on this machine.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import torch
from matplotlib.figure import Figure

import fxdecomp
from benchmarks.presets import inputs, network
from fxdecomp.compressing import FileOptions, LoadedModel, compress_to

PARTS = {"report-verdict": "header", "report-network": "topology", "report-errors": "errors"}
"""Pictures, and the section of the page that each shows."""


def spectra(path: Path) -> None:
    """Two convolutions, and what three rules would keep of them."""
    from fxdecomp.demo.lines import WIDTH
    from fxdecomp.demo.recogniser import load_recogniser

    gm = fxdecomp.trace(load_recogniser(), torch.zeros(1, 1, 64, WIDTH))
    rules = (fxdecomp.Ratio(0.4, multiple_of=16), fxdecomp.Energy(0.9), fxdecomp.VBMF())
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, layer in zip(figure.subplots(1, 2), ("features.conv2", "features.conv6"), strict=True):
        fxdecomp.plot_spectra(gm, layer, method="tucker2", rules=rules, axes=axes)
    figure.savefig(path, dpi=100)


def page(folder: Path) -> None:
    """What `compress` says of the digits' network."""
    from playwright.sync_api import sync_playwright

    model, example = network("digits")
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        compress_to(
            LoadedModel(model, example, "digits.py:network"),
            fxdecomp.Policy(budget=fxdecomp.MACs(0.4)),
            Path(place),
            calibration=fxdecomp.calibration.Calibration.of(inputs("digits")),
            files=FileOptions("int8"),
            time=True,
        )
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        shown = chromium.new_page(viewport={"width": 860, "height": 900})
        shown.goto((Path(place) / "report.html").as_uri())
        for name, part in PARTS.items():
            found = shown.locator("header" if part == "header" else f"section[aria-labelledby={part}]")
            found.screenshot(path=folder / f"{name}.png")
        chromium.close()


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    spectra(folder / "spectra.png")
    page(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
