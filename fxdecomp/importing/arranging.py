"""Operators that resize, cut and rearrange; shapes are computed with numbers, not with tensors."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.fx import Node
from torch.nn import functional as F  # noqa: N812

from fxdecomp.importing.building import Builder, Number, Sizes, Unconvertible, Value, numbers
from fxdecomp.importing.functions import depth_to_space, space_to_depth
from fxdecomp.importing.layers import Handler, pad_list
from fxdecomp.importing.operands import Operands

_END = 1 << 60
"""Ends of slices beyond it mean the end of the axis."""


def _shape(builder: Builder, op: Operands) -> Value:
    ndim = op.ndim(0)
    if ndim is None:
        raise Unconvertible("the file does not say how many axes its input has")
    axes = range(*slice(op.attribute("start", 0), op.attribute("end", None)).indices(ndim))
    x = builder.tensor(op.value(0))
    return Sizes(tuple(_length(builder, op, x, axis) for axis in axes))


def _length(builder: Builder, op: Operands, x: Node, axis: int) -> Number:
    known = op.size(0, axis)
    return builder.method("size", x, axis) if known is None else known


def _reshape(builder: Builder, op: Operands) -> Value:
    source, target = op.value(0), numbers(op.value(1))
    if isinstance(source, Sizes):
        return replace(source, scalar=not target)
    x = builder.tensor(source)
    if not op.attribute("allowzero", 0):
        target = tuple(
            _length(builder, op, x, axis) if isinstance(length, int) and length == 0 else length
            for axis, length in enumerate(target)
        )
    return builder.method("reshape", x, target)


def _flatten(builder: Builder, op: Operands) -> Value:
    axis, x = op.attribute("axis", 1), builder.tensor(op.value(0))
    if axis == op.ndim(0):
        return builder.method("reshape", x, (-1, 1))
    if axis == 1:
        return builder.call(torch.flatten, x, 1)
    if axis == 0:
        return builder.method("reshape", x, (1, -1))
    return builder.call(torch.flatten, builder.call(torch.flatten, x, 0, axis - 1), 1)


def _squeeze(builder: Builder, op: Operands) -> Value:
    value, axes = op.value(0), op.axes(1)
    if isinstance(value, Sizes):
        return replace(value, scalar=True)
    if axes is None:
        raise Unconvertible("it does not say which axes it drops")
    return builder.call(torch.squeeze, builder.tensor(value), axes)


def _unsqueeze(builder: Builder, op: Operands) -> Value:
    value, axes = op.value(0), op.axes(1) or ()
    if isinstance(value, Sizes):
        return replace(value, scalar=False)
    x, ndim = builder.tensor(value), op.ndim(0)
    if ndim is not None:
        axes = tuple(axis % (ndim + len(axes)) for axis in axes)  # they count in the result
    elif len(axes) > 1 and min(axes) < 0:
        raise Unconvertible("it counts axes from the end, and the file does not say how many there are")
    for axis in sorted(axes):
        x = builder.call(torch.unsqueeze, x, axis)
    return x


def _transpose(builder: Builder, op: Operands) -> Value:
    order = op.attribute("perm", None) or tuple(reversed(range(op.ndim(0) or 0)))
    return builder.method("permute", builder.tensor(op.value(0)), tuple(order))


def _concat(builder: Builder, op: Operands) -> Value:
    values = [op.value(index) for index in range(op.count)]
    sizes = [value for value in values if isinstance(value, Sizes)]
    if sizes:
        return Sizes(tuple(item for value in values for item in numbers(value)), dtype=sizes[0].dtype)
    return builder.call(torch.cat, [builder.tensor(value) for value in values], op.attribute("axis", 0))


def _split(builder: Builder, op: Operands) -> tuple[Value, ...]:
    axis, count = op.attribute("axis", 0), len(op.node.outputs)
    if op.has(1):
        parts = [int(length) for length in op.array(1)]
    else:
        size = op.size(0, axis)
        if size is None:
            raise Unconvertible("it splits an axis of open length into equal parts")
        part = -(-size // count)
        parts = [min(part, size - index * part) for index in range(count)]
    x, begin, values = builder.tensor(op.value(0)), 0, []
    for length in parts:
        values.append(builder.call(torch.narrow, x, axis, begin, length))
        begin += length
    return tuple(values)


def _slice(builder: Builder, op: Operands) -> Value:
    starts, ends = numbers(op.value(1)), numbers(op.value(2))
    axes = numbers(op.value(3)) if op.has(3) else tuple(range(len(starts)))
    steps = numbers(op.value(4)) if op.has(4) else (1,) * len(starts)
    value = op.value(0)
    if isinstance(value, Sizes):
        start, end, step = starts[0], ends[0], steps[0]
        if isinstance(start, Node) or isinstance(end, Node) or isinstance(step, Node):
            raise Unconvertible("it cuts a shape at a place that depends on a shape")
        return replace(value, items=value.items[slice(start, min(end, _END), step)])
    x = result = builder.tensor(value)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if not isinstance(axis, int) or not isinstance(step, int) or step < 1:
            raise Unconvertible("it runs backwards, or along an axis that is computed")
        stop = None if isinstance(end, int) and end > _END else end
        index = (slice(None),) * (axis if axis >= 0 else axis + (op.ndim(0) or 0))
        result = builder.call(operator.getitem, result, (*index, slice(start, stop, step)))
    if x in builder.zeros:
        builder.zeros.add(result)
    return result


def _gather(builder: Builder, op: Operands) -> Value:
    value, index, axis = op.value(0), op.value(1), op.attribute("axis", 0)
    if isinstance(value, Sizes):
        picked = tuple(value.items[int(item)] for item in np.atleast_1d(op.array(1)))
        return replace(value, items=picked, scalar=op.array(1).ndim == 0)
    x = builder.tensor(value)
    if isinstance(index, np.ndarray) and index.ndim == 0:
        return builder.call(torch.select, x, axis, int(index))
    if isinstance(value, np.ndarray) and value.ndim == 2 and axis == 0:
        return builder.call(F.embedding, builder.tensor(index), x)
    if isinstance(index, np.ndarray) and index.ndim == 1 and index.size and index.min() < 0:
        before = (slice(None),) * (axis if axis >= 0 else axis + (op.ndim(0) or 0))
        return builder.call(operator.getitem, x, (*before, builder.tensor(index)))
    if isinstance(index, np.ndarray) and index.ndim == 1:
        return builder.call(torch.index_select, x, axis, builder.tensor(index))
    raise Unconvertible("it gathers by a computed index along an axis of computed values")


def _expand(builder: Builder, op: Operands) -> Value:
    value, shape = op.value(0), numbers(op.value(1))
    x = builder.tensor(value)
    ndim = value.ndim if isinstance(value, np.ndarray) else op.ndim(0)
    if ndim is None or len(shape) < ndim:
        raise Unconvertible("its shape has fewer axes than its input")
    # ONNX lets a 1 of the target stand for the input's own length; PyTorch calls that -1.
    lead = len(shape) - ndim
    target = tuple(
        -1 if axis >= lead and isinstance(n, int) and n == 1 else n for axis, n in enumerate(shape)
    )
    result = builder.method("expand", x, target)
    if isinstance(value, np.ndarray) and not value.any():
        builder.zeros.add(result)
    return result


def _constant_of_shape(builder: Builder, op: Operands) -> Value:
    tensor = op.attribute("value", None)
    fill = np.zeros(1, np.float32) if tensor is None else tensor.numpy()
    result = builder.method("expand", builder.tensor(fill), numbers(op.value(0)))
    if not fill.any():
        builder.zeros.add(result)
    return result


def _tile(builder: Builder, op: Operands) -> Value:
    return builder.method("repeat", builder.tensor(op.value(0)), numbers(op.value(1)))


def _pad(builder: Builder, op: Operands) -> Value:
    mode = {"edge": "replicate"}.get(op.attribute("mode", "constant"), op.attribute("mode", "constant"))
    pads = [int(item) for item in op.array(1)]
    axes = [int(item) for item in op.array(3)] if op.has(3) else list(range(len(pads) // 2))
    ndim = op.ndim(0)
    if ndim is None or mode == "wrap":
        raise Unconvertible("it wraps, or the file does not say how many axes its input has")
    begin, end = [0] * ndim, [0] * ndim
    for position, axis in enumerate(axes):
        begin[axis], end[axis] = pads[position], pads[position + len(axes)]
    first = next((axis for axis in range(ndim) if begin[axis] or end[axis]), ndim - 1)
    if mode != "constant":
        first = min(first, 2, ndim - 1)  # PyTorch wants every spatial axis
        if first == 0 or ndim - first > 3:
            raise Unconvertible(f"PyTorch pads by {mode} along three axes at most, and not along the first")
    widths = pad_list(begin[first:], end[first:])
    fill = op.array(2).item() if op.has(2) and mode == "constant" else None
    return builder.call(F.pad, builder.tensor(op.value(0)), widths, mode, fill)


def _resize(builder: Builder, op: Operands) -> Value:
    mode, some = op.attribute("mode", "nearest"), op.attribute("axes", None)
    given = numbers(op.value(3)) if op.has(3) else tuple(map(float, op.array(2)))
    ndim = op.ndim(0) or (0 if some else len(given))
    where = op.attribute("coordinate_transformation_mode", "half_pixel")
    x = builder.tensor(op.value(0))
    extra: dict[str, Any] = {}
    if mode == "nearest" and (where, op.attribute("nearest_mode", "round_prefer_floor")) == (
        "asymmetric",
        "floor",
    ):
        name = "nearest"
    elif mode in ("linear", "cubic") and where in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        name = {"linear": {3: "linear", 4: "bilinear", 5: "trilinear"}, "cubic": {4: "bicubic"}}[mode].get(
            ndim, ""
        )
        extra = {"align_corners": where == "align_corners"}
    else:
        name = ""
    if not name or not ndim or op.attribute("antialias", 0):
        raise Unconvertible(f"PyTorch has no counterpart of {mode} with {where}")
    if mode == "cubic" and op.attribute("cubic_coeff_a", -0.75) != -0.75:
        raise Unconvertible("the coefficient of PyTorch's cubic interpolation is -0.75")
    if op.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Unconvertible("it keeps the ratio of the axes")
    new = dict(zip([axis % ndim for axis in some or range(ndim)], given, strict=True))
    if op.has(3):
        size = [new[axis] if axis in new else _length(builder, op, x, axis) for axis in range(2, ndim)]
        return builder.call(F.interpolate, x, size=tuple(size), mode=name, **extra)
    scales = tuple(new.get(axis, 1.0) for axis in range(ndim))
    if scales[:2] != (1.0, 1.0):
        raise Unconvertible("it resizes the batch or the channels")
    return builder.call(F.interpolate, x, scale_factor=scales[2:], mode=name, **extra)


def _depth_to_space(builder: Builder, op: Operands) -> Value:
    function = F.pixel_shuffle if op.attribute("mode", "DCR") == "CRD" else depth_to_space
    return builder.call(function, builder.tensor(op.value(0)), op.attribute("blocksize", 2))


def _space_to_depth(builder: Builder, op: Operands) -> Value:
    return builder.call(space_to_depth, builder.tensor(op.value(0)), op.attribute("blocksize", 2))


def _same(builder: Builder, op: Operands) -> Value:
    """Identity, and Dropout that drops nothing."""
    if op.node.op_type == "Dropout" and op.has(2) and op.array(2).any():
        raise Unconvertible("it is in training mode")
    return op.value(0)


ARRANGING: Mapping[str, Handler] = {
    **dict.fromkeys(("Identity", "Dropout"), _same),
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
