"""Decomposition on top of int8: against the honest rival, the dense network in int8.

    python -m benchmarks.int8 vgg --out build/int8
    python -m benchmarks.int8 recogniser --lines 1000 --out build/int8

VGG-16 (pytorchcv's architecture, its weights drawn) is decomposed at half ranks in multiples of 16: only its
speed says anything. The recogniser is calibrated on 64 lines without labels, and reads fresh lines. All files
of a run are timed in turn on one thread; with `--rounds 0` they are only written and judged, for
`fxdecomp bench` to time them on a quiet machine. Rows are printed as JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

import fxdecomp
from fxdecomp import Policy
from fxdecomp.export import Int8, benchmark, to_onnx
from fxdecomp.passes import FoldBatchNorm
from fxdecomp.ranks import Ratio

RATIOS = (
    ("dense", "small"),
    ("dense", "dense-int8"),
    ("small", "small-int8"),
    ("dense", "small-int8"),
    ("dense-int8", "small-int8"),
)


def export_all(
    networks: dict[str, GraphModule],
    example: Tensor,
    batches: Sequence[Tensor],
    folder: Path,
    *,
    max_error: float,
) -> dict[str, Path]:
    """Write every network in fp32 and in int8, and print what it cost."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, gm in networks.items():
        paths[name] = folder / f"{name}.onnx"
        to_onnx(gm, example, paths[name])
        lower = f"{name}-int8"
        paths[lower] = folder / f"{lower}.onnx"
        report = to_onnx(gm, example, paths[lower], quantize=Int8(max_error=max_error), calibration=batches)
        assert report.quantization is not None
        row = report.quantization.to_dict() | {"model": lower, "alone": dict(report.quantization.alone)}
        print(json.dumps(row | {"bytes": report.size_bytes}), flush=True)
    return paths


def time_all(paths: dict[str, Path], rounds: int, saved: Path) -> None:
    """Time the files in turn, print the ratios and save the report."""
    if not rounds:
        return
    report = benchmark(paths, threads=1, rounds=rounds)
    print(report)
    for slow, fast in RATIOS:
        ratio = report.ratio(slow, fast)
        row = {"ratio": f"{slow} / {fast}", "value": ratio.value, "low": ratio.low, "high": ratio.high}
        print(json.dumps(row), flush=True)
    report.save(saved)


def vgg(folder: Path, *, method: str, share: float, rounds: int, **_: Any) -> None:
    from pytorchcv.model_provider import get_model

    torch.manual_seed(0)
    example = torch.randn(1, 3, 224, 224)
    dense = FoldBatchNorm()(fxdecomp.trace(get_model("bn_vgg16").eval(), example))
    small = fxdecomp.transform(dense, Policy(method=method, rank=Ratio(share, multiple_of=16)))
    print(fxdecomp.report(small))
    batches = [torch.randn(1, 3, 224, 224) for _ in range(4)]
    # Drawn weights do not bear int8 as trained ones do; the speed is the question here.
    paths = export_all({"dense": dense, "small": small}, example, batches, folder, max_error=100)
    time_all(paths, rounds, folder / "vgg.json")


def recogniser(folder: Path, *, method: str, share: float, rounds: int, lines: int) -> None:
    from fxdecomp.demo.judging import judge, onnx_reader
    from fxdecomp.demo.lines import Split, render_lines
    from fxdecomp.demo.recogniser import load_recogniser

    calibration = torch.split(render_lines(64, Split.CALIBRATION).images, 8)
    example = calibration[0][:1]
    dense = FoldBatchNorm()(fxdecomp.trace(load_recogniser(), example))
    policy = Policy(
        rules=[fxdecomp.Rule("features.conv*", method=method, rank=Ratio(share, multiple_of=16))],
        exclude=["features.conv1"],
    )
    small = fxdecomp.transform(dense, policy, calibration=calibration)
    print(fxdecomp.report(small))
    paths = export_all({"dense": dense, "small": small}, example, calibration, folder, max_error=0.1)
    time_all(paths, rounds, folder / "recogniser.json")
    if lines:
        fresh = render_lines(lines, Split.JUDGE)
        for name, path in paths.items():
            reading = judge(onnx_reader(path), fresh)
            print(json.dumps({"model": name, **reading.to_dict()}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", choices=["vgg", "recogniser"])
    parser.add_argument("--out", type=Path, default=Path("build/int8"))
    parser.add_argument("--method", default="tucker2")
    parser.add_argument("--share", type=float)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--lines", type=int, default=1000)
    given = parser.parse_args()
    run = {"vgg": vgg, "recogniser": recogniser}[given.network]
    share = given.share or {"vgg": 0.5, "recogniser": 0.46}[given.network]
    run(given.out, method=given.method, share=share, rounds=given.rounds, lines=given.lines)


if __name__ == "__main__":
    main()
