"""Small networks of several kinds that train in minutes: pictures, signals, bytes, a thousand classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.digit_networks import Block

Draw = Callable[[int, int], tuple[Tensor, Tensor]]
"""Inputs and what they are, of a number and a seed."""


def photos(count: int, size: int, seed: int, name: str) -> Tensor:
    """Pieces `[N, 3, size, size]` of one of scikit-learn's two photographs, 0 to 1."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    draw = np.random.default_rng(seed)
    whole = load_sample_image(name)
    pieces = []
    for _ in range(count):
        side = int(draw.integers(min(96, size), 400))
        y, x = (int(draw.integers(0, length - side + 1)) for length in whole.shape[:2])
        piece = Image.fromarray(whole[y : y + side, x : x + side]).resize((size, size))
        pieces.append(np.asarray(piece))
    return torch.tensor(np.stack(pieces), dtype=torch.float32).permute(0, 3, 1, 2) / 255


class Enlarger(nn.Module):
    """Super-resolution by two: seven convolutions beside a bicubic path (Kim et al. 2016, VDSR)."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        inner = [nn.Conv2d(width, width, 3, padding=1) for _ in range(5)]
        self.body = nn.ModuleList([nn.Conv2d(1, width, 3, padding=1), *inner])
        self.out = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Brightness `[N, 1, H, W]` to `[N, 1, 2 H, 2 W]`."""
        y = x
        for layer in self.body:
            y = torch.relu(layer(y))
        detail = nn.functional.pixel_shuffle(self.out(y), 2)
        return detail + nn.functional.interpolate(x, scale_factor=2.0, mode="bicubic")


def brightness(count: int, seed: int, name: str) -> tuple[Tensor, Tensor]:
    """Pictures `[N, 1, 24, 24]` and the same at twice the size."""
    large = photos(count, 48, seed, name).mean(1, keepdim=True)
    return nn.functional.avg_pool2d(large, 2), large


class Pitch(nn.Module):
    """The note of a tone: four convolutions over time with long kernels."""

    def __init__(self) -> None:
        super().__init__()

        def layer(inner: int, outer: int, taps: int, stride: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv1d(inner, outer, taps, stride), nn.BatchNorm1d(outer), nn.ReLU())

        self.body = nn.Sequential(
            layer(1, 64, 64, 4), layer(64, 64, 16, 2), layer(64, 128, 8, 2), layer(128, 128, 8, 1)
        )
        self.head = nn.Linear(128, 48)

    def forward(self, x: Tensor) -> Tensor:
        """Waves `[N, 1, 1024]` to scores `[N, 48]`."""
        y: Tensor = self.head(self.body(x).mean(-1))
        return y


def tones(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Notes of eight harmonics in noise, at 8,000 samples a second, and which of 48 notes they are."""
    draw = torch.Generator().manual_seed(seed)
    notes = torch.randint(48, (count,), generator=draw)
    frequency = 82.4 * 2 ** (notes / 12) * 2 ** (0.02 * torch.randn(count, generator=draw) / 12)
    time = torch.arange(1024) / 8000
    waves = 0.3 * torch.randn(count, 1024, generator=draw)
    for harmonic in range(1, 9):
        size = torch.rand(count, 1, generator=draw) / harmonic
        phase = 6.283 * torch.rand(count, 1, generator=draw)
        waves += size * torch.sin(6.283 * harmonic * frequency[:, None] * time + phase)
    return waves[:, None], notes


class Bytes(nn.Module):
    """From which of eight packages a piece of source text is: two transformer blocks over its bytes."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.table = nn.Embedding(256, width)
        self.place = nn.Parameter(torch.randn(96, width) * 0.1)
        self.blocks = nn.Sequential(Block(width, 4), Block(width, 4))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 8)

    def forward(self, ids: Tensor) -> Tensor:
        """Bytes `[N, 96]` to scores `[N, 8]`."""
        y: Tensor = self.head(self.norm(self.blocks(self.table(ids) + self.place)).mean(1))
        return y


@lru_cache
def _sources() -> list[bytes]:
    library = Path(json.__file__).parent.parent
    names = ("asyncio", "email", "xml", "unittest", "concurrent", "importlib", "http", "sqlite3")
    return [b"\n".join(p.read_bytes() for p in sorted((library / name).rglob("*.py"))) for name in names]


def snippets(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pieces of 96 bytes of Python's own library; seeds below 100 from the first four fifths of a package."""
    draw = np.random.default_rng(seed)
    kinds = draw.integers(0, 8, count)
    pieces = []
    for kind in kinds:
        text = _sources()[kind]
        border = len(text) * 4 // 5
        low, high = (0, border) if seed < 100 else (border, len(text))
        place = int(draw.integers(low, high - 96))
        pieces.append(np.frombuffer(text[place : place + 96], np.uint8))
    return torch.tensor(np.stack(pieces)).long(), torch.tensor(kinds)


class Inverted(nn.Module):
    """An inverted residual (Sandler et al. 2018, MobileNetV2)."""

    def __init__(self, inner: int, outer: int, stride: int, expand: int = 4) -> None:
        super().__init__()
        wide = inner * expand
        self.body = nn.Sequential(
            nn.Conv2d(inner, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, outer, 1, bias=False), nn.BatchNorm2d(outer),
        )  # fmt: skip
        self.skips = stride == 1 and inner == outer

    def forward(self, x: Tensor) -> Tensor:
        """`[N, inner, H, W]` to `[N, outer, H / stride, W / stride]`."""
        y: Tensor = self.body(x)
        return x + y if self.skips else y


def mobile() -> nn.Module:
    """Inverted residuals over `[N, 1, 24, 40]`, 1,000 classes."""
    rows = (
        (16, 24, 1),
        (24, 24, 1),
        (24, 40, 2),
        (40, 40, 1),
        (40, 40, 1),
        (40, 80, 2),
        (80, 80, 1),
        (80, 80, 1),
    )
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
        *(Inverted(*row) for row in rows),
        nn.Conv2d(80, 640, 1, bias=False), nn.BatchNorm2d(640), nn.ReLU6(),
        nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten(), nn.Linear(1280, 1000),
    )  # fmt: skip


def numbers(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers of three digits in several fonts, `[N, 1, 24, 40]` about -1 to 1, and which they are."""
    from matplotlib import font_manager
    from PIL import Image, ImageDraw, ImageFont

    draw = np.random.default_rng(seed)
    folder = Path(font_manager.findfont("DejaVu Sans")).parent
    names = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono", "DejaVuSerif-Italic")
    fonts = [ImageFont.truetype(folder / f"{name}.ttf", size) for name in names for size in (14, 16, 18)]
    labels = draw.integers(0, 1000, count)
    images = np.empty((count, 24, 40), np.float32)
    for index, label in enumerate(labels):
        canvas = Image.new("L", (40, 24), int(draw.integers(0, 90)))
        place = (int(draw.integers(0, 7)), int(draw.integers(-1, 5)))
        font = fonts[int(draw.integers(len(fonts)))]
        ImageDraw.Draw(canvas).text(place, f"{label:03d}", int(draw.integers(150, 256)), font)
        images[index] = np.asarray(canvas)
    images += draw.normal(0, 12, images.shape).astype(np.float32)
    return torch.tensor(images)[:, None] / 127.5 - 1, torch.tensor(labels)


def trained_on(
    build: Callable[[], nn.Module],
    draw: Draw,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    steps: int,
    batch: int = 64,
    rate: float = 2e-3,
    count: int = 8192,
) -> nn.Module:
    """A network of seed 0, trained on inputs of seed 0 for some steps."""
    torch.manual_seed(0)
    network = build()
    inputs, truth = draw(count, 0)
    optimiser = torch.optim.AdamW(network.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    for _ in range(steps):
        which = torch.randint(len(inputs), (batch,))
        optimiser.zero_grad()
        torch.autograd.backward(loss(network(inputs[which]), truth[which]))
        optimiser.step()
        schedule.step()
    return network.eval()
