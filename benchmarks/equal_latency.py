"""`auto` against each single method at one budget of measured time, and networks with little to gain.

    python -m benchmarks.equal_latency recogniser --share 0.4 --out lat
    python -m benchmarks.equal_latency digits --share 0.4 --out lat
    python -m benchmarks.equal_latency light --out lat     # search on a MobileNet and an EfficientNet

Calibrated on unlabelled inputs; the metric is exact lines of 1,000 for the recogniser, and accuracy and mean
cross-entropy on the 500 held-out digits, four times as large, for the networks that are trained here.
Times are of one thread in ONNX Runtime, all networks of a run in turn.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorchcv.model_provider import get_model
from torch import Tensor, nn
from torch.fx import GraphModule

import fxdecomp
from benchmarks.digit_networks import TRAINED, digit_cnn, digit_images, trained
from benchmarks.searching import prepared
from fxdecomp.calibration import Calibration
from fxdecomp.demo.judging import judge
from fxdecomp.demo.lines import Split, render_lines
from fxdecomp.export import benchmark, to_onnx

METHODS = ("auto", "tucker2", "spatial_svd", "channel_svd", "tensor_train", "cp")
SCALE = 4
LIGHT = {"mobilenet_wd4": 30, "efficientnet_b0": 10}
"""Rounds of training of each."""

Judge = Callable[[GraphModule], dict[str, float]]


def recogniser() -> tuple[GraphModule, Tensor, Calibration, Judge]:
    lines = render_lines(1000, Split.JUDGE)
    return *prepared(), lambda network: {"exact": judge(network, lines).exact}


def digits(build: Callable[[], nn.Module], rounds: int) -> tuple[GraphModule, Tensor, Calibration, Judge]:
    images, labels = digit_images(SCALE)
    gm = fxdecomp.trace(trained(build, SCALE, rounds), images[:1])

    @torch.no_grad()
    def held_out(network: GraphModule) -> dict[str, float]:
        scores, truth = network(images[TRAINED:]), labels[TRAINED:]
        right = (scores.argmax(1) == truth).float().mean()
        return {
            "accuracy": round(float(right), 4),
            "cross_entropy": float(nn.functional.cross_entropy(scores, truth)),
        }

    return gm, images[:1], Calibration(torch.split(images[:256], 64)), held_out


def compared(name: str, share: float, methods: list[str], out: Path) -> None:
    """Each method's network at the share, all of them timed in turn with the dense one."""
    gm, example, data, held_out = recogniser() if name == "recogniser" else digits(digit_cnn, 20)
    models = {"dense": gm}
    for method in methods:
        policy = fxdecomp.Policy(method=method, budget=fxdecomp.Latency(share))
        try:
            models[method] = fxdecomp.transform(gm, policy, calibration=data)
        except fxdecomp.PolicyError as error:
            print(json.dumps({"network": name, "method": method, "refused": str(error)}), flush=True)
    paths = {each: out / f"{name}.{each}.onnx" for each in models}
    for each, model in models.items():
        to_onnx(model, example, paths[each])
    times = benchmark(paths, threads=1, rounds=15, profile=False)
    for each, model in models.items():
        ratio = times.ratio("dense", each)
        row: dict[str, Any] = {"network": name, "method": each, "ratio": str(ratio), **held_out(model)}
        print(json.dumps(row | {"used": fxdecomp.report(model).macs_after}), flush=True)


def light_network(name: str) -> nn.Module:
    """A network of pytorchcv's for digits; its last pooling, of 7 x 7, becomes global."""
    network: nn.Module = get_model(name, in_channels=1, num_classes=10)
    network.get_submodule("features").final_pool = nn.AdaptiveAvgPool2d(1)
    return network


def light(out: Path) -> None:
    """The search's answer for networks of depthwise and thin pointwise layers."""
    for name, rounds in LIGHT.items():
        gm, example, data, held_out = digits(partial(light_network, name), rounds)
        found = fxdecomp.search(
            gm,
            example,
            calibration=data,
            metric=lambda network, held_out=held_out: held_out(network)["accuracy"],  # type: ignore[misc]
            max_drop=0.002,
            evaluations=4,
            provider="CPUExecutionProvider",
            state=out / f"{name}.state.json",
        )
        print(f"{name}: dense {held_out(gm)}, found {held_out(found.model)}\n{found}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", choices=("recogniser", "digits", "light"))
    parser.add_argument("--share", type=float, default=0.4)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.network == "light":
        light(options.out)
    else:
        compared(options.network, options.share, options.methods, options.out)


if __name__ == "__main__":
    main()
