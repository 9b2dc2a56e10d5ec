"""Small networks that a benchmark trains itself, on scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

TRAINED = 1297
"""How many of the digits are trained on; the other 500 are held out."""


class Residual(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.two = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Conv2d(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps to feature maps."""
        y = self.norm2(self.two(torch.relu(self.norm1(self.one(x)))))
        return torch.relu(y + self.shortcut(x))


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `[N, T, width]` to tokens."""
        query, key, value = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        y: Tensor = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return y


class Transformer(nn.Module):
    """Three blocks over sixteen tokens, from a convolutional stem (Xiao et al. 2021, section 4)."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, width, 2, 2)
        )
        self.place = nn.Parameter(torch.randn(16, width) * 0.1)
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[N, 1, 8, 8]` to scores `[N, 10]`."""
        tokens = self.stem(x).flatten(2).transpose(1, 2) + self.place
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


def digit_cnn() -> nn.Module:
    """Three residual blocks."""
    stem = (nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
    body = (Residual(32, 32, 1), Residual(32, 64, 2), Residual(64, 64, 1))
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def digit_images(scale: int = 1) -> tuple[Tensor, Tensor]:
    """scikit-learn's digits `[1797, 1, 8, 8]`, shuffled, `scale` times as large, and what they are."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    large = images[order].repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return large, torch.tensor(data.target)[order]


def trained(
    build: Callable[[], nn.Module], scale: int = 1, rounds: int = 40, rate: float = 4e-3
) -> nn.Module:
    """A network of seed 0, trained on the digits for some rounds with small shifts."""
    torch.manual_seed(0)
    images, labels = (part[:TRAINED] for part in digit_images(scale))
    network = build()
    optimiser = torch.optim.AdamW(network.parameters(), rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=rounds * (TRAINED // 64 + 1))
    for _ in range(rounds):
        for part in torch.split(torch.randperm(TRAINED), 64):
            shift = [int(value) * scale for value in torch.randint(-1, 2, (2,))]
            loss = nn.functional.cross_entropy(network(images[part].roll(shift, (2, 3))), labels[part])
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
    return network.eval()
