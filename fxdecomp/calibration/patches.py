"""The patches that a layer's output positions see, taken at drawn positions.

    y[t, o] = sum_{s, k} W[t, s, k] p[s, k],    p[s, k] = x[s, stride o - padding + dilation k]

and for a transposed convolution `x[s, (o + padding - dilation k) / stride]`, where that is a whole number.
Positions outside of the input are zero.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import reduce

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor

from fxdecomp.layers import LayerSpec

ROWS = 4096
"""Patches that are taken at one time."""


def position_count(x: Tensor, spec: LayerSpec) -> int:
    """Number of output positions of a layer on an input, over its batch."""
    if spec.is_linear:
        return x.numel() // spec.in_channels
    images, size = _images(x, spec)
    return images * math.prod(replace(spec, input_size=size).output_size)


def inputs_first(x: Tensor, spec: LayerSpec) -> Tensor:
    """A layer's input with its batch axis first: of recurrent layers it may be the second."""
    turned = spec.recurrence is not None and not spec.recurrence.batch_first and x.ndim == 3
    return x.transpose(0, 1) if turned else x


def draw_positions(count: int, most: int, seed: int) -> Int[Tensor, " n"]:
    """All of `count` positions, or `most` of them drawn without replacement, ascending."""
    if count <= most:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:most].sort().values


def patches_at(
    x: Tensor, spec: LayerSpec, positions: Int[Tensor, " n"]
) -> list[Float[Tensor, "m channels taps"]]:
    """The patches at output positions, in slices of a bounded number of rows.

    Args:
        x: The layer's input: `[..., features]` for a Linear, `[batch, channels, *size]` or
            `[channels, *size]` for a convolution.
        spec: The layer; its own input size is not looked at.
        positions: Indices over batch and output size, flattened.

    Returns:
        Slices `[m, in_channels, prod(kernel)]` in at least float32, channels over all groups.
    """
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    slices = torch.split(positions.to(x.device), ROWS)
    if spec.is_linear:
        flat = x.reshape(-1, spec.in_channels)
        return [flat[part].unsqueeze(-1) for part in slices]
    batch = x.unsqueeze(0) if x.ndim == spec.ndim + 1 else x
    if spec.padding_mode != "zeros":
        sides = [side for pair in reversed(spec.padding) for side in pair]
        batch = F.pad(batch, sides, mode=spec.padding_mode)
        spec = replace(spec, padding=((0, 0),) * spec.ndim, padding_mode="zeros")
    size = tuple(batch.shape[2:])
    spec = replace(spec, input_size=size)
    values = batch.flatten(2).transpose(1, 2).flatten(0, 1)
    return [_gather(values, spec, part) for part in slices]


def _gather(values: Float[Tensor, "n channels"], spec: LayerSpec, part: Tensor) -> Tensor:
    """Rows of the channels-last input at every tap of some output positions."""
    image, *place = torch.unravel_index(part, (values.shape[0], *spec.output_size))
    index = image.reshape(-1, *(1,) * spec.ndim)
    inside: list[Tensor] = []
    for axis in range(spec.ndim):
        taps = torch.arange(spec.kernel[axis], device=part.device) * spec.dilation[axis]
        if spec.transposed:
            scaled = place[axis][:, None] + spec.padding[axis][0] - taps
            at = scaled.div(spec.stride[axis], rounding_mode="floor")
            valid = scaled % spec.stride[axis] == 0
        else:
            at = place[axis][:, None] * spec.stride[axis] - spec.padding[axis][0] + taps
            valid = torch.ones_like(at, dtype=torch.bool)
        valid &= (at >= 0) & (at < spec.input_size[axis])
        shape = [-1, *(1,) * spec.ndim]
        shape[1 + axis] = spec.kernel[axis]
        index = index * spec.input_size[axis] + at.clamp(0, spec.input_size[axis] - 1).reshape(shape)
        inside.append(valid.reshape(shape))
    mask = reduce(torch.logical_and, inside).flatten(1)
    rows = values[index.flatten(1)] * mask.unsqueeze(-1)
    return rows.transpose(1, 2)


def _images(x: Tensor, spec: LayerSpec) -> tuple[int, tuple[int, ...]]:
    batched = x.ndim == spec.ndim + 2
    return (x.shape[0] if batched else 1), tuple(x.shape[-spec.ndim :])
