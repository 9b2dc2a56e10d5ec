"""LSTM and GRU, as PyTorch's own modules."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from fxdecomp.export.recurrent import GATES
from fxdecomp.graphs.origins import LAYER
from fxdecomp.importing.building import Builder, Unconvertible, Value
from fxdecomp.importing.layers import Handler, filled, site_of
from fxdecomp.importing.operands import Operands


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
    filled(module, **tensors)
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
    called = builder.module(site_of(op, 1), key, module, x, *initial)
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


RECURRENT: Mapping[str, Handler] = {"LSTM": lstm, "GRU": gru}
