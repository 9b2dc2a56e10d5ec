"""Convolutions, norms and pools; modules are PyTorch's, under the names of their weights in the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F  # noqa: N812

from fxdecomp.export.naming import weight_site
from fxdecomp.importing.building import Builder, Unconvertible, Value, as_tensor
from fxdecomp.importing.functions import same_padded
from fxdecomp.importing.operands import Operands

Handler = Callable[[Builder, Operands], Value | tuple[Value, ...]]

_CONVS: Mapping[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: Mapping[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOLS: Mapping[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def conv(builder: Builder, op: Operands) -> Value:
    """Conv; padding that differs at the two ends is a Pad before it."""
    weight, bias = op.array(1), op.array_or_none(2)
    name, ndim = op.name(2), weight.ndim - 2
    if bias is None:
        name, bias = op.added_bias(len(weight), behind=ndim)
    groups, stride = op.attribute("group", 1), op.per_axis("strides", ndim)
    dilation = op.per_axis("dilations", ndim)
    x = builder.tensor(op.value(0))
    if has_open_padding(op, stride):
        x = builder.call(same_padded, x, weight.shape[2:], stride, dilation, op.attribute("auto_pad", ""))
        begin = end = (0,) * ndim
    else:
        begin, end = padding_of(op, weight.shape[2:], stride, dilation)
    if begin != end:
        x = builder.call(F.pad, x, pad_list(begin, end))
        begin = (0,) * ndim
    key = ("conv", op.name(1), name, groups, stride, dilation, begin)
    module = filled(
        _CONVS[ndim](
            weight.shape[1] * groups,
            weight.shape[0],
            weight.shape[2:],
            stride,
            begin,
            dilation,
            groups,
            bias=bias is not None,
        ),
        weight=weight,
        bias=bias,
    )
    return builder.module(site_of(op, 1), key, module, x)


def conv_transpose(builder: Builder, op: Operands) -> Value:
    """ConvTranspose; padding that differs at the two ends is cut off behind it."""
    weight, bias = op.array(1), op.array_or_none(2)
    ndim = weight.ndim - 2
    groups, stride = op.attribute("group", 1), op.per_axis("strides", ndim)
    dilation, extra = op.per_axis("dilations", ndim), tuple(op.attribute("output_padding", (0,) * ndim))
    begin, end = _transposed_padding(op, weight.shape[2:], stride, dilation, extra)
    pads = tuple(map(min, begin, end))
    key = ("conv_transpose", op.name(1), op.name(2), groups, stride, dilation, pads, extra)
    module = filled(
        _TRANSPOSED[ndim](
            weight.shape[0],
            weight.shape[1] * groups,
            weight.shape[2:],
            stride,
            pads,
            extra,
            groups,
            bias is not None,
            dilation,
        ),
        weight=weight,
        bias=bias,
    )
    whole = builder.module(site_of(op, 1), key, module, builder.tensor(op.value(0)))
    if begin == end:
        return whole
    cuts = [tuple(p - each for p, each in zip(pads, side, strict=True)) for side in (begin, end)]
    return builder.call(F.pad, whole, pad_list(*cuts))


def _transposed_padding(
    op: Operands, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], extra: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What a transposed convolution cuts off at the beginning and at the end of each axis."""
    ndim, mode = len(kernel), op.attribute("auto_pad", "NOTSET")
    sizes = op.attribute("output_shape", None)
    if mode in ("NOTSET", "VALID") and not sizes:
        pads = tuple(op.attribute("pads", (0,) * 2 * ndim)) if mode == "NOTSET" else (0,) * 2 * ndim
        return pads[:ndim], pads[ndim:]
    totals = []
    for axis in range(ndim):
        span = dilation[axis] * (kernel[axis] - 1) + 1 + extra[axis]
        if not sizes:
            totals.append(span - stride[axis])
            continue
        size = op.size(0, axis + 2)
        if size is None:
            raise Unconvertible("it states the size of its output, and that of its input is open")
        totals.append(stride[axis] * (size - 1) + span - sizes[len(sizes) - ndim + axis])
    if min(totals) < 0:
        raise Unconvertible("its output is larger than the kernel reaches")
    small, large = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
    return (small, large) if mode == "SAME_UPPER" else (large, small)


def batch_norm(builder: Builder, op: Operands) -> Value:
    """BatchNormalization in evaluation mode."""
    if op.attribute("training_mode", 0):
        raise Unconvertible("it is in training mode")
    ndim = op.ndim(0) or 4
    module = filled(
        _NORMS[ndim](len(op.array(1)), eps=op.attribute("epsilon", 1e-5)),
        **dict(
            zip(
                ("weight", "bias", "running_mean", "running_var"),
                (op.array(i) for i in range(1, 5)),
                strict=True,
            )
        ),
    )
    key = ("norm", *(op.name(i) for i in range(1, 5)), op.attribute("epsilon", 1e-5), ndim)
    return builder.module(site_of(op, 1), key, module, builder.tensor(op.value(0)))


def filled(module: nn.Module, **arrays: NDArray[Any] | None) -> nn.Module:
    """The module with these parameters and buffers."""
    for name, array in arrays.items():
        if array is None:
            continue
        tensor = as_tensor(array)
        if name in dict(module.named_buffers()):
            setattr(module, name, tensor)
        else:
            setattr(module, name, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))
    return module


def site_of(op: Operands, index: int) -> str:
    """The layer that a weight belongs to; where its name does not tell, that of the node."""
    site = weight_site(op.name(index))
    if not site:
        parts = [part for part in op.node.name.split("/") if part]
        site = ".".join(parts[:-1] if len(parts) > 1 else parts) or op.node.op_type.lower()
    return site


def padding_of(
    op: Operands, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding at the beginning and at the end of each spatial axis.

    Raises:
        Unconvertible: If it follows from a size that the file leaves open.
    """
    ndim, mode = len(kernel), op.attribute("auto_pad", "NOTSET")
    if mode in ("NOTSET", "VALID"):
        pads = tuple(op.attribute("pads", (0,) * 2 * ndim)) if mode == "NOTSET" else (0,) * 2 * ndim
        return pads[:ndim], pads[ndim:]
    totals = []
    for axis, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True)):
        size = op.size(0, axis + 2) if s > 1 else 1
        if size is None:
            raise Unconvertible(f"its padding is {mode} with stride {s}, and the size of its input is open")
        totals.append(max(0, d * (k - 1) + 1 - s if size % s == 0 else d * (k - 1) + 1 - size % s))
    small, large = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
    return (small, large) if mode == "SAME_UPPER" else (large, small)


def has_open_padding(op: Operands, stride: Sequence[int]) -> bool:
    """Whether the padding follows from a size that the file leaves open."""
    same = op.attribute("auto_pad", "NOTSET").startswith("SAME")
    return same and any(s > 1 and op.size(0, axis + 2) is None for axis, s in enumerate(stride))


def pad_list(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """The padding as `F.pad` takes it: the last axis first."""
    return [item for pair in reversed(list(zip(begin, end, strict=True))) for item in pair]


def _pool(builder: Builder, op: Operands) -> Value:
    kernel = tuple(op.attribute("kernel_shape", ()))
    ndim, largest = len(kernel), op.node.op_type == "MaxPool"
    stride, dilation = op.per_axis("strides", ndim), op.per_axis("dilations", ndim)
    begin, end = padding_of(op, kernel, stride, dilation)
    x, ceil = builder.tensor(op.value(0)), bool(op.attribute("ceil_mode", 0))
    counted = bool(op.attribute("count_include_pad", 0))
    if begin != end:
        if not (largest or counted):
            raise Unconvertible("its padding differs at the two ends and does not count")
        x = builder.call(F.pad, x, pad_list(begin, end), value=float("-inf") if largest else 0.0)
        begin = (0,) * ndim
    if largest:
        return builder.call(_MAX_POOLS[ndim], x, kernel, stride, begin, dilation, ceil)
    if set(dilation) != {1}:
        raise Unconvertible("PyTorch has no average over dilated windows")
    return builder.call(_AVERAGE_POOLS[ndim], x, kernel, stride, begin, ceil, counted)


def _global_pool(builder: Builder, op: Operands) -> Value:
    axes = tuple(range(2, op.ndim(0) or 4))
    function = torch.mean if op.node.op_type == "GlobalAveragePool" else torch.amax
    return builder.call(function, builder.tensor(op.value(0)), axes, keepdim=True)


LAYERS: Mapping[str, Handler] = {
    **dict.fromkeys(("MaxPool", "AveragePool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _global_pool),
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "BatchNormalization": batch_norm,
}
