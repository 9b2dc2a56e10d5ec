"""Fewer inner channels against chains, at equal multiply-accumulates, in networks that are trained here.

    python -m benchmarks.widths [--rounds 30]

In the transformer the MLPs' inner widths, in the residual network those between the two convolutions of each
block; against whitened chains of the same layers, all at one share. On 256 unlabelled digits, untrained;
accuracy and cross-entropy on the 500 digits that nothing saw.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxdecomp
from benchmarks.digit_networks import TRAINED, Transformer, digit_cnn, digit_images, trained
from fxdecomp import Policy, Ratio, Rule

SHARES = (0.75, 0.5, 0.35)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], str, Sequence[str], str]] = {
    "transformer": (Transformer, "*.up", ("*.up", "*.down"), "svd"),
    "residual network": (digit_cnn, "*.one", ("*.one", "*.two"), "spatial_svd"),
}
"""How each is made, whose outputs are narrowed, which layers get chains, and of which method."""


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


def main() -> None:
    """Print a line for each network and share."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    images, labels = digit_images()
    data = list(torch.split(images[:256], 32))
    for name, (build, narrowed, patterns, method) in NETWORKS.items():
        gm = fxdecomp.trace(trained(build, 1, rounds), images[:1])
        print(f"{name}: {_told(gm, images, labels)}", flush=True)
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
