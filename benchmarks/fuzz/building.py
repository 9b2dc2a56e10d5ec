"""A random network under construction: its text, and the values that the text gives so far.

Every step is run as soon as it is drawn, so that the next one knows the shapes that it may take; a step that
fails, or gives what is not finite, is not taken.
"""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

_T = TypeVar("_T")
Shapes = dict[str, tuple[int, ...]]
"""Names of parameters and their shapes."""

ROWS = 2
"""Rows of the example inputs."""
LARGEST = 20_000
"""The most numbers of a value: networks are many and small."""


@dataclass(frozen=True, slots=True)
class Step:
    """One value of a network and how it comes about.

    Attributes:
        name: The value's name, such as `v3`; what it needs are `self.l3` and `self.w3`.
        init: Lines of `__init__`.
        forward: Lines of `forward`, the last of which assigns the value.
        source: The value that can stand for it in a shrunk network, where its shape is the same; else empty.
        products: Whether two activations are multiplied as matrices, which belongs to no layer.
    """

    name: str
    init: tuple[str, ...]
    forward: tuple[str, ...]
    source: str = ""
    products: bool = False


@dataclass(slots=True)
class Drawing:
    """What the blocks draw from.

    Attributes:
        rng: All chance of a network comes from here.
        values: The values so far by name, in the order in which they were made.
        steps: The steps so far.
        weights: Names of the parameters so far and their shapes, for those that are used twice.
    """

    rng: random.Random
    values: dict[str, Any]
    steps: list[Step] = field(default_factory=list)
    weights: Shapes = field(default_factory=dict)
    holder: nn.Module = field(default_factory=nn.Module)

    @property
    def number(self) -> int:
        """The number of the step that is being drawn."""
        return len(self.steps)

    def chance(self, share: float) -> bool:
        """True in a share of the cases."""
        return self.rng.random() < share

    def any(self, *choices: _T) -> _T:
        """One of them."""
        return self.rng.choice(choices)

    def whole(self, low: int, high: int) -> int:
        """A whole number, both ends among them."""
        return self.rng.randint(low, high)

    def of(self, *ndims: int) -> str | None:
        """The name of a floating-point value with so many axes, a late one more often than an early one."""
        names = [
            name for name, v in self.values.items() if v.is_floating_point() and v.ndim in ndims and v.numel()
        ]
        if not names:
            return None
        return names[max(self.rng.randrange(len(names)) for _ in range(3))]

    def like(self, name: str) -> list[str]:
        """The other values of the same shape."""
        shape = self.values[name].shape
        return [other for other, value in self.values.items() if other != name and value.shape == shape]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a value."""
        return tuple(self.values[name].shape)

    def take(self, step: Step, weights: Shapes) -> bool:
        """Run a step, and keep it where it gives an ordinary value."""
        kept = {name: value.clone() for name, value in self.values.items()}
        stored = set(self._stored())
        scope: dict[str, Any] = {"self": self.holder, "torch": torch, "nn": nn, "F": F, **self.values}
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec("\n".join(step.init), scope)
                for module in self.holder.children():
                    module.eval()
                exec("\n".join(step.forward), scope)
        except (RuntimeError, ValueError, IndexError, TypeError):
            return self._undone(kept, stored)
        value = scope[step.name]
        ordinary = isinstance(value, Tensor) and 0 < value.numel() <= LARGEST
        if not ordinary or not all(_is_tame(each) for each in (value, *self.values.values())):
            return self._undone(kept, stored)
        self.values[step.name] = value
        self.steps.append(step)
        self.weights |= weights
        return True

    def _stored(self) -> list[str]:
        holder = self.holder
        return [*holder._parameters, *holder._buffers, *holder._modules]

    def _undone(self, values: dict[str, Any], stored: set[str]) -> bool:
        """Leave nothing of a step that failed; an in-place operation may have come before the failure."""
        self.values = values
        for name in set(self._stored()) - stored:
            delattr(self.holder, name)
        return False


def _is_tame(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(value.isfinite().all() and value.abs().max() < 1e3)


Block = Callable[[Drawing], "Step | tuple[Step, Shapes] | None"]


@dataclass(frozen=True, slots=True)
class Network:
    """A network as text.

    Attributes:
        seed: What its weights are drawn with.
        arguments: Its inputs: the shape of each behind the rows, and the number of tokens, 0 for floats.
        steps: Its steps in order.
        outputs: The expression that it returns.
        given: What is made of `net` and `values` before it is traced, an expression.
        method: The decomposition's method.
        training: Whether it is given in train mode.
    """

    seed: int
    arguments: tuple[tuple[tuple[int, ...], int], ...]
    steps: tuple[Step, ...]
    outputs: str
    given: str
    method: str
    training: bool

    @property
    def counted(self) -> str:
        """Whose products torch counts: those of the `layers`, `more` than those, or of `weights` too."""
        if any(re.search("orthogonal|spectral", line) for step in self.steps for line in step.init):
            return "weights"
        return "more" if any(step.products for step in self.steps) else "layers"

    @property
    def computes(self) -> bool:
        """Whether it may compute weights of others: of slices, stacks and parametrisations."""
        lines = [line for step in self.steps for line in (*step.init, *step.forward)]
        return any(re.search(r"parametrizations|utils\.\w+_norm|self\.w\d+\[", line) for line in lines)

    @property
    def source(self) -> str:
        """Python text that defines `network()`, `inputs(rows, seed)` and `given(net, values)`."""
        names = ", ".join(f"x{index}" for index in range(len(self.arguments)))
        init = [line for step in self.steps for line in step.init]
        forward = [line for step in self.steps for line in step.forward]
        drawn = [
            f"torch.randint({tokens}, (rows, {_axes(shape)}), generator=chance)"
            if tokens
            else f"torch.randn((rows, {_axes(shape)}), generator=chance)"
            for shape, tokens in self.arguments
        ]
        return "\n".join(
            [
                "class Network(nn.Module):",
                "    def __init__(self):",
                "        super().__init__()",
                *(f"        {line}" for line in init),
                "",
                f"    def forward(self, {names}):",
                *(f"        {line}" for line in forward),
                f"        return {self.outputs}",
                "",
                "",
                "def network():",
                f"    torch.manual_seed({self.seed})",
                f"    return Network().train({self.training})",
                "",
                "",
                "def inputs(rows, seed):",
                "    chance = torch.Generator().manual_seed(seed)",
                f"    return ({', '.join(drawn)},)",
                "",
                "",
                "def given(net, values):",
                f"    return {self.given}",
                "",
                "",
                f"METHOD, COUNTED, COMPUTES = {self.method!r}, {self.counted!r}, {self.computes}",
                "",
            ]
        )


def _axes(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))


def renamed(text: str, old: str, new: str) -> str:
    """A text with one value in the place of another."""
    return re.sub(rf"\b{old}\b", new, text)
