"""Budgets on the pretrained line recogniser: quality at equal MACs, and how well damage is predicted.

    python -m benchmarks.allocation --lines 200 --calibration 64 --shares 0.4 0.25
    python -m benchmarks.allocation --correlate 20 --lines 16

The first prints exact lines for `auto`, for each single method and for the uniform ratio of channels that has
the same MACs. The second draws random plans and prints the rank correlation (Spearman) of predicted with true
damage at the output: once with every layer alike, once with sensitivities from one forward pass a layer.
"""

from __future__ import annotations

import argparse
import random

import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.fx import GraphModule

import fxdecomp
from fxdecomp.allocation.allocate import damage
from fxdecomp.allocation.candidates import Candidate, Question, candidates
from fxdecomp.calibration import Calibration
from fxdecomp.demo.judging import judge
from fxdecomp.demo.lines import Lines, Split, render_lines
from fxdecomp.demo.recogniser import load_recogniser
from fxdecomp.plans import Choice, Plan
from fxdecomp.searching import agreement
from fxdecomp.sites import Site, survey

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


def correlate(gm: GraphModule, images: Tensor, plans: int, seed: int) -> None:
    """Weight-only plans; candidates of the three methods whose error has a closed form."""
    metric = agreement(gm, [images])
    menus = {site.name: menu for site in survey(gm).sites if len(menu := _menu(site)) > 2}
    layers = {site.name: str(site.spec) for site in survey(gm).sites}

    def truth(picks: dict[str, Candidate]) -> float:
        choices = tuple(Choice(name, layers[name], pick.method, pick.rank) for name, pick in picks.items())
        return 1 - metric(fxdecomp.transform(gm, fxdecomp.Policy.from_plan(Plan(choices))))

    slopes = {}
    for name, menu in menus.items():
        middle = min(menu[1:], key=lambda c: abs(c.error - 0.1))
        slopes[name] = truth({name: middle}) / middle.error
        print(f"{name:24} {layers[name]:28} damage per squared error {slopes[name]:.3f}", flush=True)
    rng = random.Random(seed)
    true, alike, weighed = [], [], []
    for _ in range(plans):
        picks = {name: rng.choice([c for c in menu if c.error < 0.3]) for name, menu in menus.items()}
        picks = {name: pick for name, pick in picks.items() if pick.method is not None}
        true.append(truth(picks))
        alike.append(sum(damage(pick.error) for pick in picks.values()))
        weighed.append(sum(slopes[name] * pick.error for name, pick in picks.items()))
    for name, predicted in (("every layer alike", alike), ("sensitivities", weighed)):
        print(f"{plans} plans, {name}: Spearman {spearmanr(predicted, true).statistic:.3f}")


def _menu(site: Site) -> tuple[Candidate, ...]:
    found: dict[tuple[object, ...], Candidate] = {}
    for method in ("channel_svd", "spatial_svd"):
        question = Question(site.name, (site.spec,), site.weight, 0, method, 16)
        found |= {(c.method, c.rank): c for c in candidates(question)}
    return tuple(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=200)
    parser.add_argument("--calibration", type=int, default=0, help="lines; 0 compares weight-only")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.4])
    parser.add_argument("--methods", nargs="*", default=[*METHODS, "uniform"])
    parser.add_argument("--correlate", type=int, default=0, help="number of random plans")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    lines = render_lines(options.lines, Split.JUDGE, seed=options.seed)
    gm = fxdecomp.trace(load_recogniser(), lines.images[:1])
    if options.correlate:
        correlate(gm, lines.images, options.correlate, options.seed)
        return
    data = None
    if options.calibration:
        known = render_lines(options.calibration, Split.CALIBRATION, seed=options.seed).images
        data = Calibration(tuple(torch.split(known, 16)))
    print(f"dense exact {judge(gm, lines).exact:.1%} of {options.lines} lines", flush=True)
    for share in options.shares:
        compare(gm, lines, data, share, options.methods)


if __name__ == "__main__":
    main()
