"""The networks of `benchmarks.reductions`: how each is trained, what it is fitted to, how it is scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from benchmarks.digit_networks import TRAINED, Transformer, digit_images, trained
from fxdecomp.demo.judging import judge
from fxdecomp.demo.lines import Split, render_lines
from fxdecomp.demo.recogniser import load_recogniser

DIGITS = 64
BATCH = {"transformer": DIGITS, "vit": DIGITS, "unet": 8, "recogniser": 1}
"""Inputs at a time, so many that the layers take most of the time."""


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
    return Case(network.eval(), given[: BATCH["unet"]], batches, given, score)


def digits(network: nn.Module, images: Tensor) -> Case:
    """A classifier of digits; scored by its accuracy on 500 that nothing saw."""
    labels = digit_images()[1]

    @torch.no_grad()
    def score(gm: GraphModule) -> str:
        right = (gm(images[TRAINED:]).argmax(1) == labels[TRAINED:]).float().mean()
        return f"{float(right):.1%}"

    return Case(network, images[:DIGITS], list(torch.split(images[:256], 32)), images[TRAINED:], score)


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
    network = trained(lambda: Logits(ViTForImageClassification(config)), 2, 100, 1e-3)
    return digits(network, digit_images(2)[0])


def recogniser() -> Case:
    """EasyOCR's English line recogniser; scored by the lines that it reads exactly, of 500."""
    lines = render_lines(500, Split.JUDGE)
    known = render_lines(64, Split.CALIBRATION).images
    batches = list(torch.split(known, 8))
    unseen = lines.images[:64]
    return Case(
        load_recogniser().eval(),
        known[: BATCH["recogniser"]],
        batches,
        unseen,
        lambda gm: f"{judge(gm, lines).exact:.1%}",
    )


CASES: dict[str, Callable[[], Case]] = {
    "transformer": transformer,
    "vit": vit,
    "unet": unet,
    "recogniser": recogniser,
}
