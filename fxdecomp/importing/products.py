"""Products with a constant matrix, as Linears: on either side, turned, scaled, with the bias behind them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.fx import Node

from fxdecomp.importing.building import Builder, Unconvertible, Value
from fxdecomp.importing.layers import Handler, filled, site_of
from fxdecomp.importing.operands import Operands


def gemm(builder: Builder, op: Operands) -> Value:
    """Gemm: a Linear where one of its matrices and its bias are constants, else a product and a sum."""
    alpha, beta = op.attribute("alpha", 1.0), op.attribute("beta", 1.0)
    flipped, transposed = op.attribute("transA", 0), op.attribute("transB", 0)
    first, second, bias = op.value(0), op.value(1), op.value(2) if op.has(2) else None
    if isinstance(second, np.ndarray) and isinstance(first, Node):
        weight = _scaled(second if transposed else second.T, alpha)
        row = _row(bias, len(weight))
        if bias is None or row is not None:
            x = builder.method("transpose", first, 0, 1) if flipped else first
            key = (op.name(2), alpha, beta, bool(transposed))
            return _linear(
                builder, op, 1, x, weight, bias=None if row is None else _scaled(row, beta), use=key
            )
    if isinstance(first, np.ndarray) and isinstance(second, Node) and bias is None:
        x = second if transposed else builder.method("transpose", second, 0, 1)
        weight = _scaled(first.T if flipped else first, alpha)
        y = _linear(builder, op, 0, x, weight, use=(alpha, bool(flipped)))
        return builder.method("transpose", y, 0, 1)
    a, b = builder.tensor(first), builder.tensor(second)
    a = builder.method("transpose", a, 0, 1) if flipped else a
    b = builder.method("transpose", b, 0, 1) if transposed else b
    product = builder.call(torch.matmul, a, b)
    product = product if alpha == 1.0 else builder.call(torch.mul, product, alpha)
    if bias is None:
        return product
    shift = builder.tensor(bias)
    return builder.call(torch.add, product, shift if beta == 1.0 else builder.call(torch.mul, shift, beta))


def matmul(builder: Builder, op: Operands) -> Value:
    """MatMul: a Linear where one operand is a constant matrix, with the bias that is added to it."""
    first, second = op.value(0), op.value(1)
    if isinstance(second, np.ndarray) and isinstance(first, Node):
        matrix = _matrix(second, op.ndim(0))
        if matrix is not None:
            name, bias = op.added_bias(matrix.shape[1])
            return _linear(builder, op, 1, first, matrix.T, bias=bias, use=(name, False))
    if isinstance(first, np.ndarray) and isinstance(second, Node) and (op.ndim(1) or 0) > 1:
        matrix = _matrix(first, op.ndim(1))
        if matrix is not None:
            x = builder.method("transpose", second, -1, -2)
            y = _linear(builder, op, 0, x, matrix, use=("left",))
            return builder.method("transpose", y, -1, -2)
    return builder.call(torch.matmul, builder.tensor(first), builder.tensor(second))


def einsum(builder: Builder, op: Operands) -> Value:
    """Einsum: a Linear where it is the product of the last axis with a constant matrix."""
    equation = op.attribute("equation", "").replace(" ", "")
    values = [op.value(index) for index in range(op.count)]
    match = re.fullmatch(r"([a-zA-Z.]*?)([a-zA-Z]),([a-zA-Z])([a-zA-Z])->([a-zA-Z.]*)", equation)
    if match and isinstance(values[0], Node) and isinstance(values[1], np.ndarray):
        lead, inner, a, b, result = match.groups()
        outer = b if a == inner else a
        if inner in (a, b) and a != b and result == lead + outer and not {inner, outer} & set(lead):
            weight = values[1].T if a == inner else values[1]
            return _linear(builder, op, 1, values[0], weight, use=("einsum", a == inner))
    return builder.call(torch.einsum, equation, *(builder.tensor(value) for value in values))


def _linear(
    builder: Builder,
    op: Operands,
    index: int,
    x: Node,
    weight: NDArray[Any],
    *,
    bias: NDArray[Any] | None = None,
    use: tuple[Any, ...] = (),
) -> Node:
    """A Linear; `index` is the operand that is the weight, `use` what was made of it."""
    if weight.dtype.kind != "f":
        raise Unconvertible(f"its weight is of {weight.dtype}")
    module = filled(
        nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None), weight=weight, bias=bias
    )
    return builder.module(site_of(op, index), ("linear", op.name(index), *use), module, x)


def _matrix(array: NDArray[Any], ndim: int | None) -> NDArray[Any] | None:
    """A constant as the one matrix that it holds, None where it holds more or adds axes to the result."""
    if array.ndim == 2:
        return array
    if array.ndim < 2 or ndim is None or ndim < array.ndim or set(array.shape[:-2]) != {1}:
        return None
    return array.reshape(array.shape[-2:])


def _row(bias: Value | None, length: int) -> NDArray[Any] | None:
    """A bias as one number a column, None where it is none."""
    if not isinstance(bias, np.ndarray) or bias.ndim > 2 or (bias.ndim == 2 and len(bias) != 1):
        return None
    if bias.size not in (1, length):
        return None
    return np.broadcast_to(bias.reshape(-1), (length,)).copy()


def _scaled(array: NDArray[Any], factor: float) -> NDArray[Any]:
    return array if factor == 1.0 else np.asarray(array * array.dtype.type(factor))


PRODUCTS: Mapping[str, Handler] = {"Einsum": einsum, "Gemm": gemm, "MatMul": matmul}
