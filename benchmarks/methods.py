"""Every method at fixed ratios, with few and many inputs, on two digit classifiers: what is lost and told.

    python -m benchmarks.methods                     # the table of docs/calibration.md
    python -m benchmarks.methods --methods cp tucker2 --counts 0 64

The accuracy on 500 unseen digits, in per cent, by the number of calibration inputs; a star where the last
line of the report warns. Below stands how often a calibrated network is worse than the weights alone by more
than two deviations of the difference, and how often more than two points are lost without a warning.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxdecomp
from benchmarks.digit_networks import TRAINED, digit_cnn, digit_images, trained
from fxdecomp import Policy
from fxdecomp.decompositions import METHODS

RATIOS = (0.3, 0.5, 0.7)
COUNTS = (0, 8, 64, 512)
BEARABLE = 2.0
"""Points that may be lost without a word."""


def plain_cnn() -> nn.Module:
    """The network of docs/tutorial.md: three convolutions with BatchNorms, and a head."""
    body = [
        part
        for inputs, outputs in ((1, 32), (32, 64), (64, 64))
        for part in (nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
    ]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 10))


@torch.no_grad()
def right(gm: GraphModule, inputs: Tensor, truth: Tensor) -> Tensor:
    """Which inputs are told for what they are, `[N]`."""
    scores: Tensor = gm(inputs)
    return scores.argmax(1) == truth


def main() -> None:
    """Print a Markdown table, and two counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=[method.name for method in METHODS])
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    options = parser.parse_args()
    logging.getLogger("fxdecomp").setLevel(logging.ERROR)
    images, labels = digit_images()
    unseen, truth = images[TRAINED:], labels[TRAINED:]
    worse = untold = tried = 0
    heads = " | ".join("none" if count == 0 else str(count) for count in options.counts)
    rule = "---|" * (3 + len(options.counts))
    sys.stdout.write(f"| network, dense | method | ratio | {heads} |\n|{rule}\n")
    for name, build in (("tutorial's", plain_cnn), ("residual", digit_cnn)):
        gm = fxdecomp.trace(trained(build), images[:2])
        dense = right(gm, unseen, truth)
        first = f"{name}, {100 * float(dense.float().mean()):.1f}"
        for method in options.methods:
            for ratio in options.ratios:
                cells, alone = [], None
                for count in options.counts:
                    data = list(torch.split(images[:count], 32)) if count else None
                    small = fxdecomp.transform(gm, Policy(method, ratio), calibration=data)
                    found = right(small, unseen, truth)
                    quality = fxdecomp.report(small).quality
                    warned = quality is not None and bool(quality.warning)
                    cells.append(f"{100 * float(found.float().mean()):.1f}{'*' if warned else ''}")
                    alone = found if count == 0 else alone
                    worse += alone is not None and lost(alone, found) > 2 * deviation(alone, found)
                    untold += lost(dense, found) > BEARABLE and not warned
                    tried += 1
                sys.stdout.write(f"| {first} | {method} | {ratio} | {' | '.join(cells)} |\n")
                sys.stdout.flush()
                first = ""
    sys.stdout.write(
        f"\n{tried} networks: {worse} worse than the weights alone by more than two deviations, "
        f"{untold} with more than {BEARABLE:g} points lost and not told\n"
    )


def lost(before: Tensor, after: Tensor) -> float:
    """Points of accuracy that are lost."""
    return 100 * float(before.float().mean() - after.float().mean())


def deviation(before: Tensor, after: Tensor) -> float:
    """The standard deviation of `lost`, in points: of the paired difference over the inputs."""
    return 100 * float((before.float() - after.float()).std()) / math.sqrt(len(before))


if __name__ == "__main__":
    main()
