"""The pictures of the guides: spectra of some layers, and parts of report pages in Chromium.

    python -m benchmarks.guide_pictures docs/pictures               # all of them
    python -m benchmarks.guide_pictures docs/pictures search ranks  # some

The spectra are of EasyOCR's recogniser; `report` is the page of a small network trained on scikit-learn's
digits, in float and int8, with its times on this machine; `ranks` is that of one that tells notes, not timed;
`search` is the page of `--preset safe` for the same network (see `benchmarks.presets`). `recovery` and
`transformer` are of networks that are trained on the digits too.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from matplotlib.figure import Figure

import fxdecomp
from benchmarks import presets
from benchmarks.digit_networks import TRAINED, Transformer, digit_cnn, digit_images, trained
from benchmarks.presets import inputs, network
from benchmarks.reductions import error_of
from fxdecomp.compressing import FileOptions, LoadedModel, compress_to

SHARES = (0.35, 0.2, 0.12, 0.08)
"""Of the multiply-accumulates, in the picture of what training takes away."""


def spectra(folder: Path) -> None:
    """Two convolutions, and what three rules would keep of them."""
    from fxdecomp.demo.lines import WIDTH
    from fxdecomp.demo.recogniser import load_recogniser

    gm = fxdecomp.trace(load_recogniser(), torch.zeros(1, 1, 64, WIDTH))
    rules = (fxdecomp.Ratio(0.4, multiple_of=16), fxdecomp.Energy(0.9), fxdecomp.VBMF())
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, layer in zip(figure.subplots(1, 2), ("features.conv2", "features.conv6"), strict=True):
        fxdecomp.plot_spectra(gm, layer, method="tucker2", rules=rules, axes=axes)
    figure.savefig(folder / "spectra.png", dpi=100)


def report(folder: Path) -> None:
    """What `compress` says of the digits' network."""
    with tempfile.TemporaryDirectory() as place:
        compressed("digits", Path(place), time=True)
        parts = {"report-verdict": "header", "report-network": "topology", "report-errors": "errors"}
        shown(Path(place) / "report.html", parts, folder)


def ranks(folder: Path) -> None:
    """What other ranks of the first layer would cost and lose, and what int8 makes of the values."""
    with tempfile.TemporaryDirectory() as place:
        compressed("pitch", Path(place), time=False)
        shown(Path(place) / "report.html", {"report-ranks": "ranks", "report-int8": "lowered"}, folder)


def search(folder: Path) -> None:
    """The networks that a search judged, and how little is accepted."""
    page = presets.FOLDER / "pitch-safe" / "report.html"
    if not page.exists():
        presets.run("pitch", "safe")
    shown(page, {"report-search": "frontier"}, folder)


def recovery(folder: Path) -> None:
    """What training takes away of the error, of a residual network at some budgets."""
    images, _ = digit_images()
    gm = fxdecomp.trace(trained(digit_cnn), images[:1])
    batches, unseen = list(torch.split(images[:256], 32)), images[TRAINED:]
    errors = []
    for share in SHARES:
        small = fxdecomp.transform(gm, fxdecomp.Policy(budget=fxdecomp.MACs(share)), calibration=batches)
        both = small, fxdecomp.recover(small, gm, list(torch.split(images[:TRAINED], 32)))
        errors.append([error_of(each, gm, unseen) for each in both])
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for place, label in enumerate(("fitted", "recovered")):
        where = [number + 0.4 * place for number in range(len(SHARES))]
        axes.bar(where, [100 * each[place] for each in errors], 0.38, label=label)
    axes.set_xticks([number + 0.2 for number in range(len(SHARES))], [f"{share:.0%}" for share in SHARES])
    axes.set(xlabel="multiply-accumulates that are left", ylabel="error of unseen outputs, %")
    axes.legend()
    figure.savefig(folder / "recovery.png", dpi=100)


def transformer(folder: Path) -> None:
    """What each layer of a transformer takes, before and after a budget."""
    images, _ = digit_images()
    gm = fxdecomp.trace(trained(Transformer), images[:1])
    policy = fxdecomp.Policy(budget=fxdecomp.MACs(0.35))
    told = fxdecomp.report(fxdecomp.transform(gm, policy, calibration=list(torch.split(images[:256], 32))))
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    told.plot_layers(figure.subplots()).set_title(told.summary, fontsize="medium")
    figure.savefig(folder / "transformer.png", dpi=100)


def compressed(name: str, folder: Path, *, time: bool) -> None:
    """A network of the presets at 0.4 of its work, in float and int8."""
    model, example = network(name)
    compress_to(
        LoadedModel(model, example, f"{name}.py:network"),
        fxdecomp.Policy(budget=fxdecomp.MACs(0.4)),
        folder,
        calibration=fxdecomp.calibration.Calibration.of(inputs(name)),
        files=FileOptions("int8"),
        time=time,
    )


def shown(page: Path, parts: Mapping[str, str], folder: Path) -> None:
    """Pictures of sections of a page, by the names of the pictures."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = chromium.new_page(viewport={"width": 860, "height": 900})
        tab.goto(page.resolve().as_uri())
        last = tab.locator("section[aria-labelledby=ranks] details").last
        if last.count():
            last.locator("summary").click()
        for name, part in parts.items():
            found = tab.locator("header" if part == "header" else f"section[aria-labelledby={part}]")
            found.screenshot(path=folder / f"{name}.png")
        chromium.close()


PICTURES: Mapping[str, Callable[[Path], None]] = {
    "spectra": spectra,
    "report": report,
    "ranks": ranks,
    "search": search,
    "recovery": recovery,
    "transformer": transformer,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("pictures", nargs="*", help=f"some of {', '.join(PICTURES)}; all by default")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.pictures or PICTURES:
        PICTURES[name](options.folder)


if __name__ == "__main__":
    main()
