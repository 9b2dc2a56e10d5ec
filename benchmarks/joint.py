"""Layers that read one tensor with one first stage against a chain for each, at equal multiply-accumulates.

    python -m benchmarks.joint [--rounds 30] [--shares] [--budgets] [--outputs]

In a transformer Q, K and V (and, where its MLPs are gated, gate and up), in a network of Inception blocks the
1x1 branches. With --shares only these layers, each network's at one share of their multiply-accumulates; with
--budgets what budgets make of the whole network when layers may not share, when the budget decides, and when
they must. With --outputs layers that are added instead, with one last stage for all (`benchmarks.added`).
Fitted to 256 unlabelled digits, untrained after; accuracy and cross-entropy on the 500 digits that
nothing saw, and the error of the outputs there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxdecomp
from benchmarks import added
from benchmarks.digit_networks import TRAINED, Transformer, digit_images, trained
from fxdecomp import Policy, Rule
from fxdecomp.sites import survey


class Apart(nn.Module):
    """A pre-norm block with layers of their own for Q, K and V, and a gated MLP (Shazeer 2020) if wanted."""

    def __init__(self, width: int, heads: int, gated: bool) -> None:
        super().__init__()
        self.heads, inner = heads, 4 * width if not gated else 8 * width // 3
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.gate = nn.Linear(width, inner) if gated else None
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `[N, T, width]` to tokens."""
        y = self.norm1(x)
        query, key, value = (
            each(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (self.q, self.k, self.v)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        y = self.norm2(x)
        inner = (
            nn.functional.gelu(self.up(y))
            if self.gate is None
            else self.up(y) * nn.functional.silu(self.gate(y))
        )
        found: Tensor = x + self.down(inner)
        return found


class Inception(nn.Module):
    """Four branches: 1x1, 3x3 and two 3x3 behind a 1x1 each, 1x1 behind a pool (Szegedy et al. 2015)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        part = after // 4
        self.one, self.three, self.five = (nn.Conv2d(before, part, 1) for _ in range(3))
        self.three_b = nn.Conv2d(part, part, 3, padding=1)
        self.five_b, self.five_c = (nn.Conv2d(part, part, 3, padding=1) for _ in range(2))
        self.pool, self.pooled = nn.AvgPool2d(3, 1, 1), nn.Conv2d(before, part, 1)
        self.norm = nn.BatchNorm2d(4 * part)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps to feature maps."""
        act = nn.functional.relu
        five = self.five_c(act(self.five_b(act(self.five(x)))))
        parts = [self.one(x), self.three_b(act(self.three(x))), five, self.pooled(self.pool(x))]
        return act(self.norm(torch.cat(parts, 1)))


def transformer(gated: bool) -> nn.Module:
    """The benchmarks' transformer with other blocks."""
    network = Transformer()
    network.blocks = nn.Sequential(*(Apart(96, 4, gated) for _ in range(3)))
    return network


def inception() -> nn.Module:
    """A stem and three blocks."""
    stem = (nn.Conv2d(1, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU())
    body = (Inception(64, 128), nn.MaxPool2d(2), Inception(128, 192), Inception(192, 192))
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(192, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Sequence[str]]] = {
    "transformer": (lambda: transformer(gated=False), ("*.[qkv]",)),
    "gated transformer": (lambda: transformer(gated=True), ("*.[qkv]", "*.gate", "*.up")),
    "inception": (inception, ("*.one", "*.three", "*.five")),
}
"""How each is made, and which layers share."""


@torch.no_grad()
def _told(network: GraphModule, gm: GraphModule, images: Tensor, labels: Tensor) -> str:
    scores, wanted, truth = network(images[TRAINED:]), gm(images[TRAINED:]), labels[TRAINED:]
    right = (scores.argmax(1) == truth).float().mean()
    error = (scores - wanted).norm() / (wanted - wanted.mean()).norm()
    return f"{right:.1%}, {nn.functional.cross_entropy(scores, truth):.3f}, error {error:.1%}"


def _shares(gm: GraphModule, patterns: Sequence[str], share: float) -> dict[str, Policy]:
    """Policies of one share of the layers' multiply-accumulates: a chain for each, and joint ones."""
    joint = fxdecomp.transform(
        gm, Policy(rules=[Rule(p, share="input", rank=1) for p in patterns], require_saving=False)
    )
    alone, together, specs = [], [], {site.name: site.spec for site in survey(gm).sites}
    for o in fxdecomp.report(joint).applied:
        whole = [o] + [each for each in fxdecomp.report(joint).applied if each.site in o.shares]
        inputs, outputs = specs[o.site].in_channels, [specs[each.site].out_channels for each in whole]
        alone.append(
            Rule(o.site, method="svd", rank=round(share * inputs * outputs[0] / (inputs + outputs[0])))
        )
        rank = round(share * inputs * sum(outputs) / (inputs + sum(outputs)))
        together.append(Rule(o.site, method="svd", rank=min(rank, inputs), share="input"))
    return {
        "alone": Policy(rules=alone, require_saving=False),
        "shared": Policy(rules=together, require_saving=False),
    }


def main() -> None:
    """Print a line for each network and share."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--shares", action="store_true")
    parser.add_argument("--budgets", action="store_true")
    parser.add_argument("--outputs", action="store_true")
    parser.add_argument("--only", choices=[*NETWORKS], nargs="*", default=[*NETWORKS])
    options = parser.parse_args()
    torch.set_num_threads(1)
    images, labels = digit_images()
    data = list(torch.split(images[:256], 32))
    if options.outputs:
        for line in added.lines(options.rounds, lambda small, gm: _told(small, gm, images, labels)):
            print(line, flush=True)
        return
    for name in options.only:
        build, patterns = NETWORKS[name]
        gm = fxdecomp.trace(trained(build, 1, options.rounds), images[:1])
        print(f"{name}: {_told(gm, gm, images, labels)}", flush=True)
        study = fxdecomp.study(gm, data)
        for share in (0.8, 0.6, 0.5, 0.35) if options.shares else ():
            for kind, policy in _shares(gm, patterns, share).items():
                found = [fxdecomp.transform(gm, policy, calibration=given) for given in (None, study)]
                saved = fxdecomp.report(found[1])
                told = "; ".join(_told(network, gm, images, labels) for network in found)
                taken = saved.macs_after / saved.macs_before
                print(f"{name}, {share} {kind}: MACs {taken:.3f}, weights alone, fitted: {told}", flush=True)
        for share in (0.5, 0.35, 0.25) if options.budgets else ():
            for kind, rules in {
                "alone": (),
                "auto": (Rule("*", share="auto"),),
                "shared": (Rule("*", share="input"),),
            }.items():
                start = time.process_time()
                small = fxdecomp.transform(
                    gm, Policy(budget=fxdecomp.MACs(share), rules=rules), calibration=study
                )
                report = fxdecomp.report(small)
                joint = [f"{o.site} {o.rank[0]}" for o in report.applied if o.shares and not o.before_own]
                assert report.quality is not None
                print(
                    f"{name}, {share} {kind}: {_told(small, gm, images, labels)}, judged at "
                    f"{report.quality.relative_error:.1%}; {time.process_time() - start:.0f} CPU s; {joint}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
