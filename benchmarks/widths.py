"""Fewer inner channels against chains, at equal multiply-accumulates, in networks that are trained here.

    python -m benchmarks.widths [--rounds 30] [--budgets] [--heads]

In the transformer the MLPs' inner widths, in the residual network those between the two convolutions of each
block; against whitened chains of the same layers, all at one share. On 256 unlabelled digits, untrained;
accuracy and cross-entropy on the 500 digits that nothing saw. With --budgets, what budgets make of both when
they may choose widths, and when not. With --heads, narrower heads of transformers against chains of the
layers that have them, and what budgets make of these networks without widths, with those of MLPs, of heads,
and of both; and the error of the outputs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxdecomp
from benchmarks.digit_networks import TRAINED, Transformer, digit_cnn, digit_images, trained
from benchmarks.joint import transformer
from fxdecomp import Policy, Ratio, Rule

SHARES = (0.75, 0.5, 0.35)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], str, Sequence[str], str]] = {
    "transformer": (Transformer, "*.up", ("*.up", "*.down"), "svd"),
    "residual network": (digit_cnn, "*.one", ("*.one", "*.two"), "spatial_svd"),
}
"""How each is made, whose outputs are narrowed, which layers get chains, and of which method."""


HEADS: dict[str, tuple[Callable[[], nn.Module], Mapping[str, tuple[Sequence[str], Sequence[str]]]]] = {
    "one layer for q, k, v": (Transformer, {"all": (("*.qkv",), ("*.qkv", "*.out"))}),
    "a layer each": (
        lambda: transformer(gated=False),
        {
            "q, k": (("*.q",), ("*.[qk]",)),
            "v, out": (("*.v",), ("*.v", "*.out")),
            "all": (("*.[qv]",), ("*.[qkv]", "*.out")),
        },
    ),
}
"""How each is made; what is narrowed, and which layers get chains."""


@torch.no_grad()
def _told(network: GraphModule, images: Tensor, labels: Tensor) -> str:
    scores, truth = network(images[TRAINED:]), labels[TRAINED:]
    right = (scores.argmax(1) == truth).float().mean()
    return f"{right:.1%}, {nn.functional.cross_entropy(scores, truth):.3f}"


def _chains(gm: GraphModule, patterns: Sequence[str], method: str, wanted: int) -> Policy:
    """The policy of one share of the channels whose network takes no more than what is wanted."""
    low, high = 0.02, 1.0
    for _ in range(12):
        share = (low + high) / 2
        rules = [Rule(pattern, method=method, rank=Ratio(share)) for pattern in patterns]
        taken = fxdecomp.report(fxdecomp.transform(gm, Policy(rules=rules, require_saving=False))).macs_after
        low, high = (share, high) if taken <= wanted else (low, share)
    rules = [Rule(pattern, method=method, rank=Ratio(low)) for pattern in patterns]
    return Policy(rules=rules, require_saving=False)


def _budgets(name: str, gm: GraphModule, narrowed: str, images: Tensor, labels: Tensor) -> None:
    """Print what budgets make of a network without widths and with."""
    study = fxdecomp.study(gm, list(torch.split(images[:256], 32)))
    for share in (0.5, 0.35, 0.25):
        for rules in ((), (Rule(narrowed, width="auto"),)):
            small = fxdecomp.transform(
                gm, Policy(budget=fxdecomp.MACs(share), rules=rules), calibration=study
            )
            told = fxdecomp.report(small)
            assert told.quality is not None
            widths = {row.site: row.outputs for row in told.record.widths if row.outputs}
            kind = "with widths" if rules else "without"
            error = told.quality.relative_error
            print(
                f"{name}, {share} {kind}: {_told(small, images, labels)}, error {error:.1%}; {widths}",
                flush=True,
            )


@torch.no_grad()
def _error(network: GraphModule, gm: GraphModule, images: Tensor) -> str:
    scores, wanted = network(images[TRAINED:]), gm(images[TRAINED:])
    return f"{(scores - wanted).norm() / (wanted - wanted.mean()).norm():.1%}"


def _heads(name: str, rounds: int, images: Tensor, labels: Tensor) -> None:
    """Print what narrower heads do to a transformer, and what budgets make of it."""
    build, kinds = HEADS[name]
    gm = fxdecomp.trace(trained(build, 1, rounds), images[:1])
    study = fxdecomp.study(gm, list(torch.split(images[:256], 32)))
    whole = fxdecomp.report(gm).macs_before
    print(f"{name}: {_told(gm, images, labels)}", flush=True)
    for kind, (narrowed, patterns) in kinds.items():
        for share in SHARES:
            width = Policy(rules=[Rule(pattern, width=share) for pattern in narrowed])
            macs = fxdecomp.report(fxdecomp.transform(gm, width)).macs_after
            for policy in (width, _chains(gm, patterns, "svd", macs)):
                found = [fxdecomp.transform(gm, policy, calibration=given) for given in (None, study)]
                told = "; ".join(
                    f"{_told(each, images, labels)}, {_error(each, gm, images)}" for each in found
                )
                taken = fxdecomp.report(found[1]).macs_after / whole
                what = "width" if policy is width else "chains"
                print(f"{kind}, {what} {share}: MACs {taken:.2f}, weights alone, fitted: {told}", flush=True)
    heads = tuple(Rule(pattern, width="auto") for pattern in kinds["all"][0])
    mlps = (Rule("*.up", width="auto"),)
    for share in (0.5, 0.35, 0.25):
        for what, rules in {"none": (), "MLPs": mlps, "heads": heads, "both": mlps + heads}.items():
            policy = Policy(budget=fxdecomp.MACs(share), rules=rules)
            small = fxdecomp.transform(gm, policy, calibration=study)
            widths = {row.site: row.outputs for row in fxdecomp.report(small).record.widths if row.outputs}
            told = f"{_told(small, images, labels)}, {_error(small, gm, images)}"
            print(f"{name}, {share}, widths of {what}: {told}; {widths}", flush=True)


def main() -> None:
    """Print a line for each network and share."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--budgets", action="store_true")
    parser.add_argument("--heads", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    images, labels = digit_images()
    data = list(torch.split(images[:256], 32))
    for name in HEADS if options.heads else ():
        _heads(name, options.rounds, images, labels)
    for name, (build, narrowed, patterns, method) in () if options.heads else NETWORKS.items():
        gm = fxdecomp.trace(trained(build, 1, options.rounds), images[:1])
        print(f"{name}: {_told(gm, images, labels)}", flush=True)
        if options.budgets:
            _budgets(name, gm, narrowed, images, labels)
            continue
        for share in SHARES:
            policy = Policy(rules=[Rule(narrowed, width=share)])
            macs = fxdecomp.report(fxdecomp.transform(gm, policy)).macs_after
            chains = _chains(gm, patterns, method, macs)
            whole = fxdecomp.report(gm).macs_before
            for kind, wanted in (("width", policy), (method, chains)):
                found = [fxdecomp.transform(gm, wanted, calibration=given) for given in (None, data)]
                told = "; ".join(_told(network, images, labels) for network in found)
                taken = fxdecomp.report(found[0]).macs_after / whole
                print(f"{name}, {kind} {share}: MACs {taken:.2f}, weights alone, fitted: {told}", flush=True)


if __name__ == "__main__":
    main()
