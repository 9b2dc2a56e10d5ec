"""How well the damage at a network's output is predicted, for random plans on three trained networks.

    python -m benchmarks.sensitivity 24 recogniser cnn transformer

Plans are drawn among the candidates of every layer, calibrated, and judged on inputs that calibration did not
see. Printed is the rank correlation (Spearman) of the predicted with the true damage: with every layer alike,
with sensitivities from forward passes that take away some share of a layer's variance, and with the same from
gradients (four random probes of the Jacobian, Hutchinson 1990).
"""

from __future__ import annotations

import argparse
import random
import time
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, fx
from torch.fx import GraphModule, Node

import fxdecomp
from benchmarks.digit_networks import TRAINED, Transformer, digit_cnn, digit_images, trained
from fxdecomp.allocation.agreement import Agreement
from fxdecomp.allocation.allocate import damage
from fxdecomp.allocation.candidates import Question, candidates
from fxdecomp.allocation.sensitivity import measure_sensitivity, truncated
from fxdecomp.allocation.site_work import SiteWork
from fxdecomp.calibration import Calibration
from fxdecomp.demo.lines import Split, render_lines
from fxdecomp.demo.recogniser import load_recogniser
from fxdecomp.graphs.copies import copy_sharing_tensors
from fxdecomp.graphs.inputs import float_leaves
from fxdecomp.passes import FoldBatchNorm
from fxdecomp.plans import Choice, Plan
from fxdecomp.sites import Site, survey

SHARES = (0.03, 0.1, 0.3)
PROBES = 4


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
    menus = SiteWork(dense, data).each("candidates", candidates, questions)
    menus = {site: menu for site, menu in menus.items() if len(menu) > 2}
    layers = {site.name: str(site.spec) for site in sites}
    start = time.perf_counter()
    open_ = [site for site in sites if site.name in menus]
    known_ways = {
        f"forward, {lost:.0%} lost": measure_sensitivity(dense, open_, known, lost=lost) for lost in SHARES
    }
    known_ways["gradients"] = gradient_sensitivity(dense, open_, known)
    print(f"{name}: {len(menus)} layers, sensitivities in {time.perf_counter() - start:.1f} s", flush=True)
    metric = Agreement(gm, judged)
    rng = random.Random(seed)
    true: list[float] = []
    predicted: dict[str, list[float]] = {way: [] for way in ("every layer alike", *known_ways)}
    for _ in range(plans):
        most = rng.choice([0.05, 0.15, 0.3])
        drawn = {site: rng.choice([c for c in menu if c.error < most]) for site, menu in menus.items()}
        picks = {site: pick for site, pick in drawn.items() if pick.method is not None}
        plan = Plan(tuple(Choice(s, layers[s], pick.method, pick.rank) for s, pick in picks.items()))
        true.append(1 - metric(fxdecomp.transform(gm, fxdecomp.Policy.from_plan(plan), calibration=data)))
        predicted["every layer alike"].append(sum(damage(pick.error) for pick in picks.values()))
        for way, weights in known_ways.items():
            predicted[way].append(sum(weights[site] * pick.error for site, pick in picks.items()))
    print(f"{plans} plans, true damage {min(true):.4f} to {max(true):.4f}")
    for way, values in predicted.items():
        print(f"{name}, {way}: Spearman {spearmanr(values, true).statistic:.3f}", flush=True)


def gradient_sensitivity(gm: GraphModule, sites: list[Site], batches: list[Tensor]) -> dict[str, float]:
    """The same from the Jacobian: `E (v^T J d)^2 = ||J d||^2` for normal `v`, with `d` the change."""
    runner = copy_sharing_tensors(gm).eval()
    layers = {call.node.name: site for site in sites for call in site.calls}
    sums = {site.name: [0.0, 0.0, 0.0] for site in sites}
    total = [Agreement.outputs(runner, batch) for batch in batches]
    power = sum(
        float((each - each.mean()).square().sum()) for each in map(torch.cat, zip(*total, strict=True))
    )
    generator = torch.Generator().manual_seed(0)

    for batch in batches:
        kept: dict[str, Tensor] = {}

        class Watched(fx.Interpreter):
            def run_node(self, n: Node, kept: dict[str, Tensor] = kept) -> Any:
                value = super().run_node(n)
                if n.name not in layers:
                    return value
                kept[n.name] = value if value.requires_grad else value.requires_grad_()
                return 1.0 * value

        outputs = [leaf.double() for leaf in float_leaves(Watched(runner).run(batch))]
        changes = {n: truncated(y.detach(), layers[n].spec.ndim, SHARES[0]) for n, y in kept.items()}
        for name, (_, gone, whole) in changes.items():
            sums[layers[name].name][1] += gone
            sums[layers[name].name][2] += whole
        for _ in range(PROBES):
            probes = [torch.randn(y.shape, generator=generator, dtype=y.dtype) for y in outputs]
            slopes = torch.autograd.grad(outputs, list(kept.values()), probes, retain_graph=True)
            for (name, y), slope in zip(kept.items(), slopes, strict=True):
                change = (slope * (changes[name][0] - y.detach())).double().flatten(1).sum(1)
                sums[layers[name].name][0] += float(change.square().sum()) / PROBES
    return {name: lost / power * whole / gone for name, (lost, gone, whole) in sums.items()}


def correlated_network(name: str) -> tuple[GraphModule, list[Tensor], list[Tensor]]:
    """A trained network, inputs to calibrate with and inputs to judge on."""
    if name == "recogniser":
        known, judged = (render_lines(24, split).images for split in (Split.CALIBRATION, Split.JUDGE))
        return (
            fxdecomp.trace(load_recogniser(), known[:1]),
            list(torch.split(known, 8)),
            list(torch.split(judged, 8)),
        )
    images, _ = digit_images()
    known, judged = images[:256], images[TRAINED : TRAINED + 256]
    gm = fxdecomp.trace(trained(DIGITS[name]), images[:2])
    return gm, list(torch.split(known, 64)), list(torch.split(judged, 64))


DIGITS = {"cnn": digit_cnn, "transformer": Transformer}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plans", type=int)
    parser.add_argument("networks", nargs="*", default=["recogniser", *DIGITS])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in options.networks:
        correlate(name, options.plans, options.seed)


if __name__ == "__main__":
    main()
