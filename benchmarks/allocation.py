"""Budgets on the pretrained line recogniser: quality at equal MACs, and how well damage is predicted.

    python -m benchmarks.allocation --lines 200 --calibration 64 --shares 0.4 0.25
    python -m benchmarks.allocation --correlate 24 --networks recogniser cnn transformer

The first prints exact lines for `auto`, for each single method and for the uniform ratio of channels that has
the same MACs. The second draws random plans, and prints the rank correlation (Spearman) of predicted with
true damage at the output on unseen inputs: once with every layer alike, once with measured sensitivities.
"""

from __future__ import annotations

import argparse
import random
import time

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.fx import GraphModule

import fxdecomp
from benchmarks.calibration import Residual, Transformer, fit
from fxdecomp.allocation.agreement import Agreement
from fxdecomp.allocation.allocate import damage
from fxdecomp.allocation.candidates import Question, candidates
from fxdecomp.allocation.sensitivity import measure_sensitivity
from fxdecomp.calibration import Calibration
from fxdecomp.demo.judging import judge
from fxdecomp.demo.lines import Lines, Split, render_lines
from fxdecomp.demo.recogniser import load_recogniser
from fxdecomp.passes import FoldBatchNorm
from fxdecomp.passes.site_work import SiteWork
from fxdecomp.plans import Choice, Plan
from fxdecomp.progress import silent
from fxdecomp.sites import survey

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


def correlate(name: str, plans: int, seed: int) -> None:
    """Plans drawn among the candidates of every layer, calibrated on other inputs than they are judged on."""
    gm, known, judged = correlated_network(name)
    dense = FoldBatchNorm()(gm)
    data = Calibration(known, refit=False, samples=4096)
    sites = [site for site in survey(dense).sites if site.spec.groups == 1]
    questions = {
        site.name: Question(site.name, tuple(c.spec for c in site.calls), site.weight, 0, "auto", 8)
        for site in sites
    }
    menus = SiteWork(dense, sites, data, None, silent).each("candidates", candidates, questions)
    menus = {site: menu for site, menu in menus.items() if len(menu) > 2}
    layers = {site.name: str(site.spec) for site in sites}
    start = time.perf_counter()
    weights = measure_sensitivity(dense, [site for site in sites if site.name in menus], known)
    print(f"{name}: {len(menus)} layers, sensitivities in {time.perf_counter() - start:.1f} s", flush=True)
    metric = Agreement(gm, judged)
    rng = random.Random(seed)
    true, alike, weighed = [], [], []
    for _ in range(plans):
        most = rng.choice([0.05, 0.15, 0.3])
        drawn = {site: rng.choice([c for c in menu if c.error < most]) for site, menu in menus.items()}
        picks = {site: pick for site, pick in drawn.items() if pick.method is not None}
        plan = Plan(tuple(Choice(s, layers[s], pick.method, pick.rank) for s, pick in picks.items()))
        true.append(1 - metric(fxdecomp.transform(gm, fxdecomp.Policy.from_plan(plan), calibration=data)))
        alike.append(sum(damage(pick.error) for pick in picks.values()))
        weighed.append(sum(weights[site] * pick.error for site, pick in picks.items()))
    print(f"{plans} plans, true damage {min(true):.4f} to {max(true):.4f}")
    for how, predicted in (("every layer alike", alike), ("sensitivities", weighed)):
        print(f"{name}, {how}: Spearman {spearmanr(predicted, true).statistic:.3f}", flush=True)


def correlated_network(name: str) -> tuple[GraphModule, list[Tensor], list[Tensor]]:
    """A trained network, inputs to calibrate with and inputs to judge on."""
    if name == "recogniser":
        known, judged = (render_lines(24, split).images for split in (Split.CALIBRATION, Split.JUDGE))
        return (
            fxdecomp.trace(load_recogniser(), known[:1]),
            list(torch.split(known, 8)),
            list(torch.split(judged, 8)),
        )
    images, labels = digit_images()
    torch.manual_seed(0)
    network = fit(DIGITS[name](), images[:1297], labels[:1297])
    known, judged = images[:256], images[1297:1553]
    gm = fxdecomp.trace(network, images[:2])
    return gm, list(torch.split(known, 64)), list(torch.split(judged, 64))


def digit_images() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits `[1797, 1, 8, 8]`, shuffled, and what they are."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order], torch.tensor(data.target)[order]


def digit_cnn() -> nn.Module:
    """The residual network of `benchmarks.calibration`."""
    stem = (nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
    body = (Residual(32, 32, 1), Residual(32, 64, 2), Residual(64, 64, 1))
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


DIGITS = {"cnn": digit_cnn, "transformer": Transformer}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=200)
    parser.add_argument("--calibration", type=int, default=0, help="lines; 0 compares weight-only")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.4])
    parser.add_argument("--methods", nargs="*", default=[*METHODS, "uniform"])
    parser.add_argument("--correlate", type=int, default=0, help="number of random plans")
    parser.add_argument("--networks", nargs="*", default=["recogniser", *DIGITS], help="for --correlate")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.correlate:
        for name in options.networks:
            correlate(name, options.correlate, options.seed)
        return
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
