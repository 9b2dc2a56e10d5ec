"""`Opaque`: a leaf of a graph that holds a piece of another program, which PyTorch cannot look into."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, slots=True)
class InnerLayer:
    """A layer inside an opaque leaf.

    Attributes:
        name: What it is called there.
        layer: The layer in words.
        params: Number of its weights.
    """

    name: str
    layer: str
    params: int


class Opaque(nn.Module):
    """Runs like any module and gives no gradients.

    Attributes:
        contents: What it holds, in words.
        layers: The layers inside, which are left alone.
    """

    contents: str = ""
    layers: tuple[InnerLayer, ...] = ()
