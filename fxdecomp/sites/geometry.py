"""Makes a `LayerSpec` of the arguments that torch's layers and functions take."""

from __future__ import annotations

from collections.abc import Sequence

from fxdecomp.layers import LayerSpec

Sizes = int | Sequence[int]


def linear_geometry(in_features: int, out_features: int) -> LayerSpec:
    """A Linear, without its input size."""
    return LayerSpec(in_features, out_features)


def conv_geometry(
    in_channels: int,
    out_channels: int,
    kernel: Sequence[int],
    *,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    transposed: bool = False,
    output_padding: Sizes = 0,
) -> LayerSpec:
    """A convolution, without its input size.

    Args:
        in_channels: Over all groups.
        out_channels: Over all groups.
        kernel: One entry per spatial axis.
        stride: One number, or one per spatial axis; likewise below.
        padding: Likewise, or `"same"` (the odd element goes behind, as in torch), or `"valid"`.
        dilation: Likewise.
        groups: Number of groups.
        padding_mode: `zeros`, `reflect`, `replicate` or `circular`.
        transposed: Whether the convolution is transposed.
        output_padding: Likewise.
    """
    ndim = len(kernel)
    dilations = _per_axis(dilation, ndim)
    if padding == "same":
        pads = same_padding(kernel, dilations)
    elif padding == "valid":
        pads = ((0, 0),) * ndim
    else:
        assert not isinstance(padding, str)
        pads = tuple((p, p) for p in _per_axis(padding, ndim))
    return LayerSpec(
        in_channels,
        out_channels,
        kernel=tuple(int(k) for k in kernel),
        stride=_per_axis(stride, ndim),
        padding=pads,
        dilation=dilations,
        groups=groups,
        padding_mode=padding_mode,
        transposed=transposed,
        output_padding=_per_axis(output_padding, ndim),
    )


def same_padding(kernel: Sequence[int], dilation: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """The padding that keeps an input's size at stride 1; the odd element goes behind, as in torch."""
    totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    return tuple((total // 2, total - total // 2) for total in totals)


def _per_axis(value: Sizes, ndim: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * ndim
    values = tuple(int(v) for v in value)
    return values * ndim if len(values) == 1 else values
