"""Budgets on the pretrained line recogniser: quality at equal MACs.

    python -m benchmarks.allocation --lines 200 --calibration 64 --shares 0.4 0.25

Prints exact lines for `auto`, for each single method and for the uniform ratio of channels that has the same
MACs.
"""

from __future__ import annotations

import argparse

import torch
from torch.fx import GraphModule

import fxdecomp
from fxdecomp.calibration import Calibration
from fxdecomp.demo.judging import judge
from fxdecomp.demo.lines import Lines, Split, render_lines
from fxdecomp.demo.recogniser import load_recogniser

METHODS = ("auto", "tucker2", "spatial_svd", "channel_svd")


def uniform(gm: GraphModule, share: float) -> fxdecomp.Policy:
    """Tucker-2 at the ratio of channels whose MACs come nearest to the share from below."""
    low, high = 0.02, 1.0
    for _ in range(8):
        ratio = (low + high) / 2
        told = fxdecomp.report(fxdecomp.transform(gm, _uniform(ratio)))
        low, high = (ratio, high) if told.macs_after <= share * told.macs_before else (low, ratio)
    return _uniform(low)


def _uniform(ratio: float) -> fxdecomp.Policy:
    return fxdecomp.Policy(method="tucker2", rank=fxdecomp.Ratio(ratio))


def compare(
    gm: GraphModule, lines: Lines, data: Calibration | None, share: float, methods: list[str]
) -> None:
    how = "weight-only" if data is None else "calibrated"
    for name in methods:
        policy = (
            uniform(gm, share)
            if name == "uniform"
            else fxdecomp.Policy(budget=fxdecomp.MACs(share), method=name)
        )
        small = fxdecomp.transform(gm, policy, calibration=data)
        told = fxdecomp.report(small)
        ratio = told.macs_after / told.macs_before
        score = judge(small, lines)
        print(
            f"{how:12} {share:.2f} {name:12} MACs {ratio:.4f}  exact {score.exact:.1%}  cer {score.cer:.2%}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=200)
    parser.add_argument("--calibration", type=int, default=0, help="lines; 0 compares weight-only")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.4])
    parser.add_argument("--methods", nargs="*", default=[*METHODS, "uniform"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    lines = render_lines(options.lines, Split.JUDGE, seed=options.seed)
    gm = fxdecomp.trace(load_recogniser(), lines.images[:1])
    data = None
    if options.calibration:
        known = render_lines(options.calibration, Split.CALIBRATION, seed=options.seed).images
        data = Calibration(tuple(torch.split(known, 16)))
    print(f"dense exact {judge(gm, lines).exact:.1%} of {options.lines} lines", flush=True)
    for share in options.shares:
        compare(gm, lines, data, share, options.methods)


if __name__ == "__main__":
    main()
