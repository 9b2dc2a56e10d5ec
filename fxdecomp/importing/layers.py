"""Operators that hold weights, as PyTorch's own modules under the names that the weights have in the file."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.fx import Node
from torch.nn import functional as F  # noqa: N812

from fxdecomp.export.naming import weight_site
from fxdecomp.export.recurrent import GATES
from fxdecomp.graphs.origins import LAYER
from fxdecomp.importing.building import Builder, Unconvertible, Value, as_tensor
from fxdecomp.importing.operands import Operands

Handler = Callable[[Builder, Operands], Value | tuple[Value, ...]]

_CONVS: Mapping[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: Mapping[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def conv(builder: Builder, op: Operands) -> Value:
    """Conv; padding that differs at the two ends is a Pad before it."""
    weight, bias = op.array(1), op.array_or_none(2)
    ndim = weight.ndim - 2
    groups, stride = op.attribute("group", 1), op.per_axis("strides", ndim)
    dilation = op.per_axis("dilations", ndim)
    begin, end = padding_of(op, weight.shape[2:], stride, dilation)
    x = builder.tensor(op.value(0))
    if begin != end:
        x = builder.call(F.pad, x, pad_list(begin, end))
        begin = (0,) * ndim
    key = ("conv", op.name(1), op.name(2), groups, stride, dilation, begin)
    module = _filled(
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
    return builder.module(_site(op, 1), key, module, x)


def conv_transpose(builder: Builder, op: Operands) -> Value:
    """ConvTranspose with padding that is equal at both ends."""
    weight, bias = op.array(1), op.array_or_none(2)
    ndim = weight.ndim - 2
    groups, stride = op.attribute("group", 1), op.per_axis("strides", ndim)
    dilation, extra = op.per_axis("dilations", ndim), tuple(op.attribute("output_padding", (0,) * ndim))
    if op.attribute("output_shape", None) or op.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise Unconvertible("its padding follows from the output's shape")
    pads = tuple(op.attribute("pads", (0,) * 2 * ndim))
    if pads[:ndim] != pads[ndim:]:
        raise Unconvertible("its padding differs at the two ends")
    key = ("conv_transpose", op.name(1), op.name(2), groups, stride, dilation, pads, extra)
    module = _filled(
        _TRANSPOSED[ndim](
            weight.shape[0],
            weight.shape[1] * groups,
            weight.shape[2:],
            stride,
            pads[:ndim],
            extra,
            groups,
            bias is not None,
            dilation,
        ),
        weight=weight,
        bias=bias,
    )
    return builder.module(_site(op, 1), key, module, builder.tensor(op.value(0)))


def gemm(builder: Builder, op: Operands) -> Value:
    """Gemm: a Linear where its matrix and its bias are constants and not scaled, else a product and a sum."""
    alpha, beta = op.attribute("alpha", 1.0), op.attribute("beta", 1.0)
    flipped, transposed = op.attribute("transA", 0), op.attribute("transB", 0)
    matrix, bias = op.value(1), op.value(2) if op.has(2) else None
    if not flipped and alpha == beta == 1.0 and isinstance(matrix, np.ndarray):
        weight = matrix if transposed else matrix.T
        if bias is None or (isinstance(bias, np.ndarray) and bias.shape == weight.shape[:1]):
            return _linear(builder, op, weight, bias, (op.name(2), bool(transposed)))
    a, b = builder.tensor(op.value(0)), builder.tensor(op.value(1))
    a = builder.method("transpose", a, 0, 1) if flipped else a
    b = builder.method("transpose", b, 0, 1) if transposed else b
    product = builder.call(torch.mul, builder.call(torch.matmul, a, b), alpha)
    if bias is None:
        return product
    return builder.call(torch.add, product, builder.call(torch.mul, builder.tensor(bias), beta))


def matmul(builder: Builder, op: Operands) -> Value:
    """MatMul: a Linear where its second operand is a constant matrix, with the bias that is added to it."""
    matrix = op.value(1)
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2:
        return builder.call(torch.matmul, builder.tensor(op.value(0)), builder.tensor(matrix))
    name, bias = op.added_bias(matrix.shape[1])
    return _linear(builder, op, matrix.T, bias, (name, False))


def batch_norm(builder: Builder, op: Operands) -> Value:
    """BatchNormalization in evaluation mode."""
    if op.attribute("training_mode", 0):
        raise Unconvertible("it is in training mode")
    ndim = op.ndim(0) or 4
    module = _filled(
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
    return builder.module(_site(op, 1), key, module, builder.tensor(op.value(0)))


def lstm(builder: Builder, op: Operands) -> tuple[Value, ...]:
    """LSTM, its gates in PyTorch's order."""
    return _recurrent(builder, op, nn.LSTM, ("Sigmoid", "Tanh", "Tanh"))


def gru(builder: Builder, op: Operands) -> tuple[Value, ...]:
    """GRU, its gates in PyTorch's order."""
    if not op.attribute("linear_before_reset", 0):
        raise Unconvertible("PyTorch has no GRU with linear_before_reset=0")
    return _recurrent(builder, op, nn.GRU, ("Sigmoid", "Tanh"))


def _recurrent(
    builder: Builder,
    op: Operands,
    kind: type[nn.LSTM | nn.GRU],
    activations: Sequence[str],
) -> tuple[Value, ...]:
    order = GATES[kind]
    weights = [op.array(1), op.array(2)]
    directions, hidden = weights[0].shape[0], op.attribute("hidden_size", weights[1].shape[2])
    _refuse_variants(op, tuple(activations) * directions)
    bias = op.array_or_none(3)
    if bias is not None:
        weights += [bias[:, : bias.shape[1] // 2], bias[:, bias.shape[1] // 2 :]]
    module = kind(weights[0].shape[2], hidden, bidirectional=directions == 2, bias=bias is not None)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    tensors = {
        f"{name}_l0{'_reverse' if direction else ''}": np.concatenate(
            [np.split(array[direction], len(order))[gate] for gate in order]
        )
        for name, array in zip(names, weights, strict=False)
        for direction in range(directions)
    }
    _filled(module, **tensors)
    x = builder.tensor(op.value(0))
    states = [
        builder.tensor(op.value(i))
        for i in (5, 6)[: 2 if kind is nn.LSTM else 1]
        if op.has(i) and _is_data(builder, op, i)
    ]
    if states and kind is nn.LSTM and len(states) == 1:
        raise Unconvertible("only one of its two states is given")
    initial: tuple[Any, ...] = ()
    if states:
        initial = (tuple(states) if kind is nn.LSTM else states[0],)
    key = (op.node.op_type, *(op.name(i) for i in range(1, 4)))
    called = builder.module(_site(op, 1), key, module, x, *initial)
    called.meta[LAYER] = [name for i in (1, 2, 3) if (name := op.name(i))]
    columns = builder.call(operator.getitem, called, 0)
    split = builder.method("unflatten", columns, -1, (directions, hidden))
    whole = builder.method("transpose", split, 1, 2)
    last = builder.call(operator.getitem, called, 1)
    if kind is nn.GRU:
        return whole, last
    return whole, builder.call(operator.getitem, last, 0), builder.call(operator.getitem, last, 1)


def _refuse_variants(op: Operands, activations: tuple[str, ...]) -> None:
    unusual = {
        "peepholes": op.has(7),
        "sequence lengths": op.has(4),
        "a clip": op.attribute("clip", None) is not None,
        "coupled gates": bool(op.attribute("input_forget", 0)),
        "the batch first": bool(op.attribute("layout", 0)),
        "the reverse direction alone": op.attribute("direction", "forward") == "reverse",
        "other activations": tuple(op.attribute("activations", activations)) != activations,
    }
    found = [name for name, present in unusual.items() if present]
    if found:
        raise Unconvertible(f"PyTorch has none with {' and '.join(found)}")


def _is_data(builder: Builder, op: Operands, index: int) -> bool:
    """Whether a state is more than zeros, with which PyTorch begins by itself."""
    value = op.value(index)
    return bool(value.any()) if isinstance(value, np.ndarray) else value not in builder.zeros


def _linear(
    builder: Builder,
    op: Operands,
    weight: NDArray[Any],
    bias: NDArray[Any] | None,
    use: tuple[str, bool],
) -> Node:
    """A Linear; `use` is the bias's name and whether the file's matrix is the weight or its transpose."""
    module = _filled(
        nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None), weight=weight, bias=bias
    )
    key = ("linear", op.name(1), *use)
    return builder.module(_site(op, 1), key, module, builder.tensor(op.value(0)))


def _filled(module: nn.Module, **arrays: NDArray[Any] | None) -> nn.Module:
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


def _site(op: Operands, index: int) -> str:
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


def pad_list(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """The padding as `F.pad` takes it: the last axis first."""
    return [item for pair in reversed(list(zip(begin, end, strict=True))) for item in pair]


LAYERS: Mapping[str, Handler] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
    "BatchNormalization": batch_norm,
    "LSTM": lstm,
    "GRU": gru,
}
