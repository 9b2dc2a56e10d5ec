"""Operators that work on every element, reductions, and normalisation without weights in a module."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from fxdecomp.importing.building import Builder, Sizes, Unconvertible, Value, numbers
from fxdecomp.importing.functions import log_sum, norm_of, sum_of_squares
from fxdecomp.importing.layers import Handler
from fxdecomp.importing.operands import Operands

_UNARY: Mapping[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": F.hardswish,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tanh": torch.tanh,
}
_BINARY: Mapping[str, Callable[..., Any]] = {
    "And": torch.logical_and,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
}
_ARITHMETIC: Mapping[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "Add": (torch.add, operator.add),
    "Sub": (torch.sub, operator.sub),
    "Mul": (torch.mul, operator.mul),
    "Div": (torch.div, operator.floordiv),
}
"""With tensors, and with the whole numbers of shapes."""

_VARIADIC: Mapping[str, Callable[..., Any]] = {"Max": torch.maximum, "Min": torch.minimum, "Sum": torch.add}
_REDUCTIONS: Mapping[str, Callable[..., Any]] = {
    "ReduceMax": torch.amax,
    "ReduceMean": torch.mean,
    "ReduceMin": torch.amin,
    "ReduceSum": torch.sum,
    "ReduceLogSum": log_sum,
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceSumSquare": sum_of_squares,
}
_NORMS = {"ReduceL1": 1, "ReduceL2": 2}
_TYPES = {
    1: torch.float32,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
}


def _unary(builder: Builder, op: Operands) -> Value:
    return builder.call(_UNARY[op.node.op_type], builder.tensor(op.value(0)))


def _binary(builder: Builder, op: Operands) -> Value:
    return builder.call(_BINARY[op.node.op_type], builder.tensor(op.value(0)), builder.tensor(op.value(1)))


def _power(builder: Builder, op: Operands) -> Value:
    """Pow: of the base's type, where PyTorch takes that of both."""
    kinds = [item.dtype for item in op.node.inputs]
    result = builder.call(torch.pow, builder.tensor(op.value(0)), builder.tensor(op.value(1)))
    return result if kinds[0] == kinds[1] else builder.method("to", result, _type(kinds[0]))


def _type(kind: int | None) -> torch.dtype:
    if kind not in _TYPES:
        raise Unconvertible(f"the type of its input is not known ({kind})")
    return _TYPES[kind]


def _arithmetic(builder: Builder, op: Operands) -> Value:
    a, b = op.value(0), op.value(1)
    of_tensors, of_numbers = _ARITHMETIC[op.node.op_type]
    if isinstance(a, Sizes) or isinstance(b, Sizes):
        return _on_sizes(builder, of_numbers, a, b)
    if op.node.op_type == "Div" and "INT" in str(op.node.inputs[0].dtype):
        return builder.call(torch.div, builder.tensor(a), builder.tensor(b), rounding_mode="trunc")
    return builder.call(of_tensors, builder.tensor(a), builder.tensor(b))


def _on_sizes(builder: Builder, function: Callable[..., Any], a: Value, b: Value) -> Value:
    scalar = all(
        value.scalar if isinstance(value, Sizes) else isinstance(value, np.ndarray) and value.ndim == 0
        for value in (a, b)
    )
    first, second = numbers(a), numbers(b)
    length = max(len(first), len(second))
    pairs = zip(first * (length // len(first)), second * (length // len(second)), strict=True)
    items = tuple(
        function(x, y) if isinstance(x, int) and isinstance(y, int) else builder.call(function, x, y)
        for x, y in pairs
    )
    dtype = next(value.dtype for value in (a, b) if isinstance(value, Sizes))
    return Sizes(items, scalar, dtype)


def _variadic(builder: Builder, op: Operands) -> Value:
    function = _VARIADIC[op.node.op_type]
    values = [builder.tensor(op.value(index)) for index in range(op.count)]
    return functools.reduce(lambda a, b: builder.call(function, a, b), values)


def _reduction(builder: Builder, op: Operands) -> Value:
    axes = op.axes(1)
    if axes is None and op.attribute("noop_with_empty_axes", 0):
        return op.value(0)
    axes = tuple(range(op.ndim(0) or 0)) if axes is None else axes
    if not axes:
        raise Unconvertible("it reduces all axes, and the file does not say how many there are")
    x, keep, kind = builder.tensor(op.value(0)), bool(op.attribute("keepdims", 1)), op.node.inputs[0].dtype
    if op.node.op_type == "ReduceSum" and "INT" in str(kind):  # PyTorch sums whole numbers as int64
        return builder.call(torch.sum, x, axes, keepdim=keep, dtype=_type(kind))
    if op.node.op_type in _NORMS:
        return builder.call(norm_of, x, axes, keepdim=keep, order=_NORMS[op.node.op_type])
    return builder.call(_REDUCTIONS[op.node.op_type], x, axes, keepdim=keep)


def _arg(builder: Builder, op: Operands) -> Value:
    if op.attribute("select_last_index", 0):
        raise Unconvertible("PyTorch has none that selects the last index")
    function = torch.argmax if op.node.op_type == "ArgMax" else torch.argmin
    keep = bool(op.attribute("keepdims", 1))
    return builder.call(function, builder.tensor(op.value(0)), op.attribute("axis", 0), keepdim=keep)


_ALPHAS: Mapping[str, tuple[Callable[..., Any], float]] = {
    "Celu": (F.celu, 1.0),
    "Elu": (F.elu, 1.0),
    "LeakyRelu": (F.leaky_relu, 0.01),
}
"""Functions of one number, and what it is by default."""


def _activation(builder: Builder, op: Operands) -> Value:
    function, usual = _ALPHAS[op.node.op_type]
    return builder.call(function, builder.tensor(op.value(0)), op.attribute("alpha", usual))


def _threshold(builder: Builder, op: Operands) -> Value:
    return builder.call(F.threshold, builder.tensor(op.value(0)), op.attribute("alpha", 1.0), 0.0)


def _gelu(builder: Builder, op: Operands) -> Value:
    return builder.call(F.gelu, builder.tensor(op.value(0)), approximate=op.attribute("approximate", "none"))


def _hard_sigmoid(builder: Builder, op: Operands) -> Value:
    x, slope, beta = builder.tensor(op.value(0)), op.attribute("alpha", 0.2), op.attribute("beta", 0.5)
    if abs(slope - 1 / 6) < 1e-6 and beta == 0.5:
        return builder.call(F.hardsigmoid, x)
    line = builder.call(torch.add, builder.call(torch.mul, x, slope), beta)
    return builder.call(torch.clamp, line, 0.0, 1.0)


def _prelu(builder: Builder, op: Operands) -> Value:
    x, slope = builder.tensor(op.value(0)), builder.tensor(op.value(1))
    negative = builder.call(torch.mul, builder.call(torch.clamp, x, max=0), slope)
    return builder.call(torch.add, builder.call(torch.relu, x), negative)


def _softmax(builder: Builder, op: Operands) -> Value:
    function = torch.softmax if op.node.op_type == "Softmax" else torch.log_softmax
    return builder.call(function, builder.tensor(op.value(0)), op.attribute("axis", -1))


def _clip(builder: Builder, op: Operands) -> Value:
    bounds = [op.array(index).item() if op.has(index) else None for index in (1, 2)]
    return builder.call(torch.clamp, builder.tensor(op.value(0)), *bounds)


def _where(builder: Builder, op: Operands) -> Value:
    return builder.call(torch.where, *(builder.tensor(op.value(index)) for index in range(3)))


def _cast(builder: Builder, op: Operands) -> Value:
    value, to = op.value(0), int(op.attribute("to", 1))
    if isinstance(value, Sizes) and to in (6, 7):
        return replace(value, dtype=_TYPES[to])
    if to not in _TYPES:
        raise Unconvertible(f"it casts to ONNX's type {to}")
    return builder.method("to", builder.tensor(value), _TYPES[to])


def _layer_norm(builder: Builder, op: Operands) -> Value:
    if len(op.node.outputs) > 1 or op.attribute("axis", -1) not in (-1, (op.ndim(0) or 0) - 1):
        raise Unconvertible("it normalises over several axes")
    weight, bias = builder.tensor(op.value(1)), builder.tensor(op.value(2)) if op.has(2) else None
    x = builder.tensor(op.value(0))
    return builder.call(F.layer_norm, x, op.array(1).shape, weight, bias, op.attribute("epsilon", 1e-5))


def _instance_norm(builder: Builder, op: Operands) -> Value:
    x, weight, bias = (builder.tensor(op.value(index)) for index in range(3))
    return builder.call(F.instance_norm, x, weight=weight, bias=bias, eps=op.attribute("epsilon", 1e-5))


def _group_norm(builder: Builder, op: Operands) -> Value:
    x, weight, bias = (builder.tensor(op.value(index)) for index in range(3))
    groups = op.attribute("num_groups", 1)
    if op.array(1).shape[0] != op.size(0, 1):
        raise Unconvertible("its scale is that of groups, not of channels")
    return builder.call(F.group_norm, x, groups, weight, bias, op.attribute("epsilon", 1e-5))


ELEMENTWISE: Mapping[str, Handler] = {
    **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys(_BINARY, _binary),
    **dict.fromkeys(_ARITHMETIC, _arithmetic),
    **dict.fromkeys(_VARIADIC, _variadic),
    **dict.fromkeys((*_REDUCTIONS, *_NORMS), _reduction),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    **dict.fromkeys(_ALPHAS, _activation),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "PRelu": _prelu,
    "ThresholdedRelu": _threshold,
    "Pow": _power,
    "Clip": _clip,
    "Where": _where,
    "Cast": _cast,
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
}
