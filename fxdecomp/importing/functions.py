"""What operators of ONNX compute, where it takes more than one call of PyTorch's; graphs call these."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.overrides import handle_torch_function, has_torch_function


def same_padded(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], mode: str
) -> Tensor:
    """Zeros around an input so that a convolution gives `ceil(size / stride)`; the odd one behind it.

    Args:
        x: `[batch, channels, *size]`.
        kernel: One entry a spatial axis.
        stride: Likewise.
        dilation: Likewise.
        mode: `SAME_UPPER`, or `SAME_LOWER` for the odd one before it.
    """
    widths: list[int] = []
    for axis in reversed(range(len(kernel))):
        size, step = x.shape[axis + 2], stride[axis]
        over = size % step
        total = max(0, dilation[axis] * (kernel[axis] - 1) + 1 - (over or step))
        small, large = total // 2, total - total // 2
        widths += [small, large] if mode == "SAME_UPPER" else [large, small]
    return F.pad(x, widths)


def norm_of(x: Tensor, axes: Sequence[int], keepdim: bool, order: int) -> Tensor:
    """The norm along some axes, of order 1 or 2."""
    found: Tensor = torch.linalg.vector_norm(x, order, dim=tuple(axes), keepdim=keepdim)
    return found


def sum_of_squares(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """The sum of squares along some axes."""
    return torch.sum(x * x, dim=tuple(axes), keepdim=keepdim)


def log_sum(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """The logarithm of the sum along some axes."""
    return torch.log(torch.sum(x, dim=tuple(axes), keepdim=keepdim))


def depth_to_space(x: Tensor, block: int) -> Tensor:
    """Channels `[block, block, channels]` to blocks of positions, the order that ONNX calls DCR."""
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, block, block, channels // block**2, height, width)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(batch, -1, height * block, width * block)


def space_to_depth(x: Tensor, block: int) -> Tensor:
    """Blocks of positions to channels `[block, block, channels]`."""
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, channels, height // block, block, width // block, block)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, height // block, width // block)


def tensor_of_sizes(sizes: int | Sequence[int], dtype: torch.dtype) -> Tensor:
    """Sizes as a tensor: one call for a tracer too, which unpickling is; `torch.tensor` cannot be traced.

    Args:
        sizes: One for a scalar, or several.
        dtype: Of the result.
    """
    each = tuple(sizes) if isinstance(sizes, list | tuple) else (sizes,)
    if has_torch_function(each):
        traced: Tensor = handle_torch_function(tensor_of_sizes, each, sizes, dtype)
        return traced
    return torch.tensor(sizes, dtype=dtype)
