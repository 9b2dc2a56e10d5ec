"""Geometry of layers, and what they cost: `LayerSpec`, `StageSpec` with a name, `Count`.

A *spec* describes one Conv or Linear as it is applied at one place, with its true input size, so that its
multiply-accumulates can be counted. A Linear is a convolution over no spatial axes: `kernel == ()`.
Weights are kept in the layout `[out_channels, in_channels // groups, *kernel]` for every kind of layer,
transposed convolutions included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_TINY = 512**2
"""The square of a patch size below which what a layer costs does not depend on it."""


@dataclass(frozen=True, slots=True)
class Recurrence:
    """What a recurrent layer computes beside the product of its first level's weights and its input.

    Attributes:
        kind: `LSTM`, `GRU` or `RNN`.
        hidden: Size of the state.
        projected: Size of the output, where an LSTM projects it; else 0.
        directions: 1, or 2 for a bidirectional layer.
        levels: Number of layers on top of each other.
        has_bias: Whether all levels have biases.
        batch_first: Whether the input is `[batch, steps, features]`.
        steps: Length of the sequence.
    """

    kind: str
    hidden: int
    projected: int = 0
    directions: int = 1
    levels: int = 1
    has_bias: bool = True
    batch_first: bool = False
    steps: int = 1

    @property
    def outputs(self) -> int:
        """Size of one direction's output."""
        return self.projected or self.hidden

    @property
    def products(self) -> int:
        """Size of the input product of one level: all gates of both directions."""
        return self.directions * _GATES[self.kind] * self.hidden

    @property
    def weights(self) -> int:
        """Number of weights, and multiply-accumulates of a step: of the states, and of the higher levels."""
        states = self.products * self.outputs + self.directions * self.hidden * self.projected
        return self.levels * states + (self.levels - 1) * self.products * self.directions * self.outputs

    @property
    def biases(self) -> int:
        """Number of biases, but for those of the first level's input product, where there are any."""
        return (2 * self.levels - 1) * self.products

    def __str__(self) -> str:
        text = f", {self.levels} layers" if self.levels > 1 else ""
        return text + (", both directions" if self.directions == 2 else "")


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """The geometry of one application of a Conv or Linear.

    Attributes:
        in_channels: Channels (features) of the input, over all groups.
        out_channels: Channels (features) of the output, over all groups.
        kernel: Kernel size, one entry per spatial axis; empty for a Linear.
        stride: One entry per spatial axis.
        padding: `(before, after)` per spatial axis.
        dilation: One entry per spatial axis.
        groups: Number of groups.
        padding_mode: One of `PADDING_MODES`.
        transposed: Whether this is a transposed convolution.
        output_padding: One entry per spatial axis; zero unless transposed.
        input_size: Size of the input along each spatial axis.
        positions: Product of all other axes of the input (the batch, and a Linear's leading axes).
        recurrence: What follows the product in a recurrent layer, whose weight here is that of its first
            level's inputs: all gates of both directions read one input.
    """

    in_channels: int
    out_channels: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    padding_mode: str = "zeros"
    transposed: bool = False
    output_padding: tuple[int, ...] = ()
    input_size: tuple[int, ...] = ()
    positions: int = 1
    recurrence: Recurrence | None = None

    def __post_init__(self) -> None:
        ndim = len(self.kernel)
        defaults = {
            "stride": (1,) * ndim,
            "padding": ((0, 0),) * ndim,
            "dilation": (1,) * ndim,
            "output_padding": (0,) * ndim,
            "input_size": (1,) * ndim,
        }
        for name, default in defaults.items():
            value = getattr(self, name)
            if value == () and ndim:
                object.__setattr__(self, name, default)
            elif len(value) != ndim:
                raise ValueError(
                    f"{name} {value} has {len(value)} entries, the kernel {self.kernel} has {ndim}"
                )
        if self.in_channels < 1 or self.out_channels < 1:
            raise ValueError(f"a layer needs channels, got {self.in_channels} -> {self.out_channels}")
        if self.groups < 1 or self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(f"{self.groups} groups do not divide {self.in_channels} -> {self.out_channels}")
        if self.padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode {self.padding_mode!r} is none of {PADDING_MODES}")

    @property
    def ndim(self) -> int:
        """Number of spatial axes: 0 for a Linear, 2 for a Conv2d."""
        return len(self.kernel)

    @property
    def is_linear(self) -> bool:
        """Whether the layer is a Linear."""
        return not self.kernel

    @property
    def effort(self) -> int:
        """About what a fit to data costs, in units of a small layer's; what progress is told in."""
        patch = self.in_channels // self.groups * math.prod(self.kernel)
        return 1 + round(self.groups * patch**2 / _TINY)

    @property
    def is_pointwise(self) -> bool:
        """Whether the layer mixes channels only: a Linear or a 1x1 convolution without padding."""
        return all(k == 1 for k in self.kernel) and all(pair == (0, 0) for pair in self.padding)

    @property
    def is_depthwise(self) -> bool:
        """Whether every channel has its own group."""
        return self.groups > 1 and self.groups == self.in_channels == self.out_channels

    @property
    def output_size(self) -> tuple[int, ...]:
        """Size of the output along each spatial axis."""
        sizes = []
        for axis in range(self.ndim):
            span = self.dilation[axis] * (self.kernel[axis] - 1)
            pads = sum(self.padding[axis])
            size = self.input_size[axis]
            if self.transposed:
                sizes.append((size - 1) * self.stride[axis] - pads + span + 1 + self.output_padding[axis])
            else:
                sizes.append((size + pads - span - 1) // self.stride[axis] + 1)
        return tuple(sizes)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight: `(out_channels, in_channels // groups, *kernel)`."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def params(self) -> int:
        """Number of weights, without the bias; of a recurrent layer all but the bias of its input product."""
        own = math.prod(self.weight_shape)
        if self.recurrence is None:
            return own
        return own + self.recurrence.weights + (self.recurrence.biases if self.recurrence.has_bias else 0)

    @property
    def bias_params(self) -> int:
        """How many parameters a bias is; a recurrent layer has all of its biases or none."""
        if self.recurrence is None or self.recurrence.has_bias:
            return self.out_channels
        return self.out_channels + self.recurrence.biases

    @property
    def macs(self) -> int:
        """Multiply-accumulates of this application, over the whole example batch; padding counts as data."""
        if self.recurrence is not None:
            return (math.prod(self.weight_shape) + self.recurrence.weights) * self.positions
        size = self.input_size if self.transposed else self.output_size
        return self.params * math.prod(size) * self.positions

    @property
    def per_group(self) -> LayerSpec:
        """The spec of one group, as an ungrouped layer."""
        return replace(
            self,
            in_channels=self.in_channels // self.groups,
            out_channels=self.out_channels // self.groups,
            groups=1,
        )

    def times_groups(self, groups: int) -> LayerSpec:
        """The layer that applies `groups` copies of this geometry side by side."""
        return replace(
            self,
            in_channels=self.in_channels * groups,
            out_channels=self.out_channels * groups,
            groups=self.groups * groups,
        )

    def pointwise(self, in_channels: int, out_channels: int, *, at_output: bool) -> LayerSpec:
        """A 1x1 stage (a Linear, for a Linear) before or after the spatial work of this layer."""
        ones = (1,) * self.ndim
        return LayerSpec(
            in_channels,
            out_channels,
            kernel=ones,
            input_size=self.output_size if at_output else self.input_size,
            positions=self.positions,
        )

    def along(
        self, axes: tuple[int, ...], in_channels: int, out_channels: int, *, groups: int = 1
    ) -> LayerSpec:
        """This layer's spatial work along some of its axes only, on its own input size."""
        wide = [axis in axes for axis in range(self.ndim)]
        return replace(
            self,
            in_channels=in_channels,
            out_channels=out_channels,
            groups=groups,
            kernel=tuple(k if keep else 1 for k, keep in zip(self.kernel, wide, strict=True)),
            stride=tuple(s if keep else 1 for s, keep in zip(self.stride, wide, strict=True)),
            padding=tuple(p if keep else (0, 0) for p, keep in zip(self.padding, wide, strict=True)),
            dilation=tuple(d if keep else 1 for d, keep in zip(self.dilation, wide, strict=True)),
            output_padding=tuple(p if keep else 0 for p, keep in zip(self.output_padding, wide, strict=True)),
        )

    def __str__(self) -> str:
        if self.recurrence is not None:
            return f"{self.recurrence.kind} {self.in_channels}->{self.recurrence.outputs}{self.recurrence}"
        if self.is_linear:
            return f"Linear {self.in_channels}->{self.out_channels}"
        kind = f"Conv{'Transpose' if self.transposed else ''}{self.ndim}d"
        text = f"{kind} {self.in_channels}->{self.out_channels}, {'x'.join(map(str, self.kernel))}"
        if any(s != 1 for s in self.stride):
            text += f", stride {'x'.join(map(str, self.stride))}"
        return text + (f", groups {self.groups}" if self.groups > 1 else "")


@dataclass(frozen=True, slots=True)
class Count:
    """What a layer, a chain or a part of a network takes.

    Attributes:
        macs: Multiply-accumulates over all calls.
        params: Weights and biases.
    """

    macs: int
    params: int


@dataclass(frozen=True, slots=True)
class StageSpec:
    """A stage before its weight is known: its name within the site, and its geometry."""

    name: str
    spec: LayerSpec
