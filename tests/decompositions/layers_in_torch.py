"""Layers applied with torch itself, the tests' ground truth, and drawn geometries."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from fxdecomp.chains import Chain
from fxdecomp.layers import LayerSpec

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def apply_layer(x: Tensor, spec: LayerSpec, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if spec.is_linear:
        if spec.groups == 1:
            return F.linear(x, weight, bias)
        return F.conv1d(x.unsqueeze(-1), weight.unsqueeze(-1), bias, groups=spec.groups).squeeze(-1)
    if spec.transposed:
        grouped = weight.reshape(spec.groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
        before = [first for first, _ in spec.padding]
        return CONV_TRANSPOSE[spec.ndim](
            x, grouped, bias, spec.stride, before, spec.output_padding, spec.groups, spec.dilation
        )
    if any(pair != (0, 0) for pair in spec.padding):
        mode = "constant" if spec.padding_mode == "zeros" else spec.padding_mode
        x = F.pad(x, [side for pair in reversed(spec.padding) for side in pair], mode=mode)
    return CONV[spec.ndim](x, weight, bias, spec.stride, 0, spec.dilation, spec.groups)


def apply_chain(x: Tensor, chain: Chain) -> Tensor:
    for stage in chain.stages:
        x = apply_layer(x, stage.spec, stage.weight, stage.bias)
    return x


def draw_input(spec: LayerSpec, seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(spec.positions, spec.in_channels, *spec.input_size, generator=generator, dtype=dtype)


def draw_weight(spec: LayerSpec, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(spec.weight_shape, generator=generator, dtype=torch.float64).to(dtype)


@st.composite
def geometries(draw: st.DrawFn, ndims: tuple[int, ...] = (2, 2, 2, 1, 3, 0)) -> LayerSpec:
    """Small layers of every kind: kernels even, odd and 1 x k, strides, paddings, dilations, groups."""
    ndim = draw(st.sampled_from(ndims))
    groups = draw(st.sampled_from((1, 1, 1, 2, 3))) if ndim else 1
    channels = st.sampled_from((1, 2, 3, 4, 5, 7))
    transposed = bool(ndim) and draw(st.booleans())

    def per_axis(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(ndim))

    kernel = per_axis(1, 4 if ndim < 3 else 3)
    stride, dilation, before = per_axis(1, 3), per_axis(1, 2), per_axis(0, 2)
    span = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    if transposed:  # where more padding may leave no output
        before = tuple(min(pad, n - 1) for pad, n in zip(before, span, strict=True))
    after = before if transposed or draw(st.booleans()) else per_axis(0, 2)
    # Wide enough for one output position, and for a reflection of two.
    size = tuple(draw(st.integers(max(n, 3), max(n, 3) + 3)) for n in span)
    extra = tuple(max(s, d) - 1 for s, d in zip(stride, dilation, strict=True))
    return LayerSpec(
        in_channels=draw(channels) * groups,
        out_channels=draw(channels) * groups,
        kernel=kernel,
        stride=stride,
        padding=tuple(zip(before, after, strict=True)),
        dilation=dilation,
        groups=groups,
        padding_mode="zeros"
        if transposed
        else draw(st.sampled_from(("zeros", "reflect", "replicate", "circular"))),
        transposed=transposed,
        output_padding=tuple(draw(st.integers(0, n)) for n in extra) if transposed else (0,) * ndim,
        input_size=size,
        positions=draw(st.integers(1, 3)),
    )


def ranks_upwards(limits: tuple[int, ...], count: int = 5) -> list[tuple[int, ...]]:
    """Ranks from 1 to the limits, no entry ever falling."""
    shares = [i / (count - 1) for i in range(count)]
    ranks = [tuple(1 + round(share * (limit - 1)) for limit in limits) for share in shares]
    return [rank for rank, _ in itertools.groupby(ranks)]


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return float(
        torch.linalg.vector_norm(got.double() - wanted.double()) / torch.linalg.vector_norm(wanted.double())
    )
