"""A budget fitted to few calibration inputs, judged on 500 others: is it ever worse than weights alone?

    python -m benchmarks.few_inputs                  # the table of docs/calibration.md
    python -m benchmarks.few_inputs --counts 4 8 --seeds 0 1 2

A small network learns ten numbers of pictures of 1/f noise. Printed is, by the number of calibration
inputs, the share of the unseen outputs' variance that the compressed network explains (R2), and the least
that a report says it agrees by, on the inputs that it held out. Fewer than 32 inputs are joined with made-up
ones; "alone" are the rows without (`made_up=False`).
"""

from __future__ import annotations

import argparse
import logging
import sys

import numpy as np
import torch
from torch import Tensor, nn

import fxdecomp
from fxdecomp import MACs, Policy
from fxdecomp.calibration.competing import FEW

COUNTS = (1, 2, 3, 4, 8, 16, 32, 64, 160, 512)
STEPS = 300


def pictures(count: int, seed: int) -> Tensor:
    """`[count, 3, 32, 32]` of noise whose amplitude falls with the frequency."""
    generator = np.random.default_rng(seed)
    frequency = np.fft.fftfreq(32)
    radius = np.sqrt(frequency[:, None] ** 2 + frequency[None] ** 2) + 1 / 32
    noise = np.fft.ifft2(np.fft.fft2(generator.standard_normal((count, 3, 32, 32))) / radius).real
    return torch.from_numpy((noise / noise.std()).astype(np.float32))


def trained(seed: int) -> nn.Module:
    """Three convolutions and two Linears that learnt a fixed nonlinear function of the picture."""
    torch.manual_seed(seed)
    sizes = ((3, 32), (32, 64), (64, 64))
    body = [part for before, after in sizes for part in (nn.Conv2d(before, after, 3, 2, 1), nn.ReLU())]
    net = nn.Sequential(*body, nn.Flatten(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10))
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)
    truth = nn.Linear(3 * 32 * 32, 10).requires_grad_(False)
    for step in range(STEPS):
        x = pictures(64, 1000 + step)
        loss = (net(x) - torch.tanh(3 * truth(x.flatten(1)))).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net.eval()


def explained(original: nn.Module, other: nn.Module, inputs: Tensor) -> float:
    """R2: one less the lost share of the outputs' variance over the inputs."""
    with torch.no_grad():
        wanted, got = original(inputs), other(inputs)
    return 1.0 - float((wanted - got).square().mean() / wanted.var(0).mean())


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--share", type=float, default=0.5, help="of the multiply-accumulates")
    options = parser.parse_args()
    logging.getLogger("fxdecomp").setLevel(logging.ERROR)
    unseen = pictures(500, 7)
    networks = [trained(seed) for seed in options.seeds]
    graphs = [fxdecomp.trace(net, unseen[:1]) for net in networks]
    head = " | ".join(f"R2, network {seed}" for seed in options.seeds)
    sys.stdout.write(f"| inputs | {head} | least agreement reported |\n|---|{'---|' * (len(networks) + 1)}\n")
    rows = [(0, False, "none, weights alone"), (0, True, "none, made up")]
    for count in options.counts:
        rows += [(count, False, f"{count}, alone")] * (count < FEW) + [(count, True, str(count))]
    for count, made_up, name in rows:
        batches = list(torch.split(pictures(count, 3), 16)) if count else None
        policy = Policy(budget=MACs(options.share), made_up=made_up)
        small = [fxdecomp.transform(gm, policy, calibration=batches) for gm in graphs]
        values = [explained(net, each, unseen) for net, each in zip(networks, small, strict=True)]
        told = [quality.agreement for each in small if (quality := fxdecomp.report(each).quality) is not None]
        shown = " | ".join(f"{value:.3f}" for value in values)
        sys.stdout.write(f"| {name} | {shown} | {min(told):.3f} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
