"""Budgets that may reduce several layers at once against budgets of single chains, at equal measured time.

    python -m benchmarks.reductions --out DIR                           # all networks
    python -m benchmarks.reductions transformer unet --out DIR --recover

Each network is given a ladder of budgets of multiply-accumulates twice, once with chains of single layers
alone and once with all that `auto` may be allowed to do: widths, shared inputs, and chains in recurrent
layers. All networks that come of it are timed in turn with the dense one, on one thread of ONNX Runtime and
batches in which the layers take most of the time. Printed are each rung, and for the shares .5 and .35 of the
dense network's time what lies between the rungs on both sides: the error of the outputs on inputs that
nothing was fitted to. With --recover all of it again after distillation on the calibration inputs. `vit`
needs the `transformers` package.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxdecomp
from benchmarks.digit_networks import TRAINED, Transformer, digit_images, trained
from fxdecomp import MACs, Policy, PolicyError, Rule
from fxdecomp.demo.judging import judge
from fxdecomp.demo.lines import Split, render_lines
from fxdecomp.demo.recogniser import load_recogniser
from fxdecomp.export import benchmark, to_onnx

LADDER = (0.7, 0.5, 0.4, 0.3, 0.22, 0.16)
SHARES = (0.5, 0.35)
_ROUNDS = 15


@dataclass(frozen=True, slots=True)
class Case:
    """A trained network and what is done with it.

    Attributes:
        network: The network.
        example: Inputs for its export and times.
        batches: Unlabelled inputs that it is fitted to.
        unseen: Inputs that nothing is fitted to.
        score: What people would ask of it.
    """

    network: nn.Module
    example: Tensor
    batches: list[Tensor]
    unseen: Tensor
    score: Callable[[GraphModule], str]


class UNet(nn.Module):
    """Two levels down and up again, for images of one channel."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.down1, self.down2 = self._block(1, width), self._block(width, 2 * width)
        self.bottom = self._block(2 * width, 4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.join2 = self._block(4 * width, 2 * width)
        self.up1 = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.join1, self.head = self._block(2 * width, width), nn.Conv2d(width, 1, 1)

    @staticmethod
    def _block(before: int, after: int) -> nn.Sequential:
        first = (nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())
        second = (nn.Conv2d(after, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())
        return nn.Sequential(*first, *second)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[N, 1, H, W]` to images, H and W multiples of 4."""
        one = self.down1(x)
        two = self.down2(nn.functional.max_pool2d(one, 2))
        three = self.bottom(nn.functional.max_pool2d(two, 2))
        two = self.join2(torch.cat((self.up2(three), two), 1))
        result: Tensor = self.head(self.join1(torch.cat((self.up1(two), one), 1)))
        return result


def noisy(images: Tensor, seed: int) -> Tensor:
    """Images under noise as strong as they are."""
    return images + torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))


def unet() -> Case:
    """Takes the noise from digits of 32 x 32; scored in decibels."""
    images = digit_images(4)[0]
    torch.manual_seed(0)
    network, known, unseen = UNet(), images[:TRAINED], images[TRAINED:]
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for step in range(400):
        part = known[torch.randint(TRAINED, (32,))]
        loss = nn.functional.mse_loss(network(noisy(part, step)), part)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    given = noisy(unseen, 10_000)

    @torch.no_grad()
    def score(gm: GraphModule) -> str:
        error = nn.functional.mse_loss(gm(given), unseen)
        return f"{float(10 * torch.log10(4 / error)):.2f} dB"

    batches = list(torch.split(noisy(known[:256], 20_000), 32))
    return Case(network.eval(), given[:8], batches, given, score)


def digits(network: nn.Module, images: Tensor) -> Case:
    """A classifier of digits; scored by its accuracy on 500 that nothing saw."""
    labels = digit_images()[1]

    @torch.no_grad()
    def score(gm: GraphModule) -> str:
        right = (gm(images[TRAINED:]).argmax(1) == labels[TRAINED:]).float().mean()
        return f"{float(right):.1%}"

    return Case(network, images[:64], list(torch.split(images[:256], 32)), images[TRAINED:], score)


def transformer() -> Case:
    """The transformer of the other benchmarks, on 8 x 8."""
    return digits(trained(Transformer), digit_images()[0])


class Logits(nn.Module):
    """An image classifier of `transformers` that returns its logits alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        result: Tensor = self.inner(x, return_dict=False)[0]
        return result


def vit() -> Case:
    """A vision transformer of the `transformers` package, four blocks over 16 patches and a class token."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 384}
    config = ViTConfig(**sizes, image_size=16, patch_size=4, num_channels=1, num_labels=10)
    network = trained(lambda: Logits(ViTForImageClassification(config)), 2, 40)
    return digits(network, digit_images(2)[0])


def recogniser() -> Case:
    """EasyOCR's English line recogniser; scored by the lines that it reads exactly, of 500."""
    lines = render_lines(500, Split.JUDGE)
    known = render_lines(64, Split.CALIBRATION).images
    batches = list(torch.split(known, 8))
    unseen = lines.images[:64]
    return Case(
        load_recogniser().eval(), known[:1], batches, unseen, lambda gm: f"{judge(gm, lines).exact:.1%}"
    )


CASES: dict[str, Callable[[], Case]] = {
    "transformer": transformer,
    "vit": vit,
    "unet": unet,
    "recogniser": recogniser,
}


def policies(gm: GraphModule) -> dict[str, tuple[Rule, ...]]:
    """Rules under which layers are reduced one by one, and those that open all that there is."""
    recurrent = [name for name, module in gm.named_modules() if isinstance(module, nn.RNNBase)]
    return {
        "single chains": tuple(Rule(name, method=None) for name in recurrent),
        "all reductions": (Rule("*", width="auto", share="auto"),),
    }


@torch.no_grad()
def error_of(small: GraphModule, gm: GraphModule, unseen: Tensor) -> float:
    """`||y - y'|| / ||y - mean y||` over some inputs."""
    found, wanted = small(unseen), gm(unseen)
    return float((found - wanted).norm() / (wanted - wanted.mean()).norm())


def at_share(rungs: Sequence[tuple[float, float]], share: float) -> float | None:
    """The error at a share of the dense network's time, between the best rungs around it; None below all.

    Args:
        rungs: Share of the time and error of each network.
        share: The share that is asked for.
    """
    best: list[tuple[float, float]] = []
    for time, error in sorted(rungs):
        if not best or error < best[-1][1]:
            best.append((time, error))
    if not best or share < best[0][0]:
        return None
    times, errors = zip(*best, strict=True)
    return float(np.interp(share, times, errors))


def measured(name: str, out: Path, *, recover: bool) -> None:
    """Print the rungs of one network, and what lies at equal time."""
    case = CASES[name]()
    gm = fxdecomp.trace(case.network, case.example)
    print(f"| {name}, dense | | | | {case.score(gm)} |", flush=True)
    study = fxdecomp.study(gm, case.batches)
    made: dict[tuple[str, float, str], GraphModule] = {}
    for kind, rules in policies(gm).items():
        for share in LADDER:
            try:
                small = fxdecomp.transform(gm, Policy(budget=MACs(share), rules=rules), calibration=study)
            except PolicyError as error:
                print(f"| {name}, {kind} | {share} | refused: {error} | | |", flush=True)
                continue
            made[kind, share, ""] = small
            if recover:
                made[kind, share, ", recovered"] = fxdecomp.recover(small, gm, case.batches)
    paths = {"dense": out / f"{name}.dense.onnx"}
    to_onnx(gm, case.example, paths["dense"])
    for (kind, share, after), small in made.items():
        label = f"{kind} {share}{after}"
        paths[label] = out / f"{name}.{label.replace(' ', '-').replace(',', '')}.onnx"
        to_onnx(small, case.example, paths[label])
    times = benchmark(paths, threads=1, rounds=_ROUNDS, profile=False)
    rungs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for (kind, share, after), small in made.items():
        ratio = times.ratio("dense", f"{kind} {share}{after}")
        lost = error_of(small, gm, case.unseen)
        rungs.setdefault((kind, after), []).append((1 / ratio.value, lost))
        row = f"| {name}, {kind}{after} | {share} | {ratio} | {lost:.1%} | {case.score(small)} |"
        print(row, flush=True)
    for share in SHARES:
        for (kind, after), known in rungs.items():
            found = at_share(known, share)
            told = "not reached" if found is None else f"{found:.1%}"
            print(f"| {name}, {kind}{after} | at {share} of the time | | {told} | |", flush=True)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", help=f"some of {', '.join(CASES)}")
    parser.add_argument("--out", type=Path, required=True, help="where the ONNX files go")
    parser.add_argument("--recover", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    print("| network | budget | speedup | error of the outputs | score |\n|---|---|---|---|---|", flush=True)
    for name in options.networks or CASES:
        measured(name, options.out, recover=options.recover)


if __name__ == "__main__":
    main()
