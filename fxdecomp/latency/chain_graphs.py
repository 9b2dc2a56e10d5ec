"""A chain as a small ONNX graph between two neighbours, to be timed.

ONNX Runtime's CPU provider keeps the values between 2-D convolutions in blocks of channels, and puts Reorder
nodes where a value enters or leaves that layout. Alone, every chain would pay for two of them which it does
not cost in a network. So it stands between two poolings over single positions, which take the layout that a
neighbour has: what runs between the two poolings is the chain, with the reorders that it really needs.
Chains of recurrent layers take sequences `[steps, batch, features]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fxdecomp.layers import LayerSpec, Recurrence

BEFORE, AFTER = "before", "after"
"""Names of the two neighbours."""


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A small ONNX model, and the shapes of its inputs by name."""

    model: Any
    inputs: Mapping[str, tuple[int, ...]]


def chain_graph(specs: Sequence[LayerSpec], *, empty: bool = False, copies: int = 1) -> Network:
    """A chain between its neighbours.

    Weights are alike: time does not depend on their values. Padding modes other than zeros are padded with
    zeros.

    Args:
        specs: The stages, in order.
        empty: Leave the stages out: an input and what surrounds a chain.
        copies: Chains side by side, each with an input and weights of its own, so that none is made one with
            another.
    """
    from onnx import TensorProto, helper

    shape = _input_shape(specs[0])
    if (recurs := specs[-1].recurrence) is not None:
        shape = (recurs.steps, specs[0].positions // recurs.steps, specs[0].in_channels)
    nodes: list[Any] = []
    weights: list[Any] = []
    prefixes = ["", *(f"copy.{index}." for index in range(1, copies))]
    outputs = [_chain(nodes, weights, specs, prefix, empty=empty) for prefix in prefixes]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info(f"{prefix}x", TensorProto.FLOAT, shape) for prefix in prefixes],
        [helper.make_empty_tensor_value_info(value) for value in outputs],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return Network(model, {f"{prefix}x": shape for prefix in prefixes})


def _chain(
    nodes: list[Any], weights: list[Any], specs: Sequence[LayerSpec], prefix: str, *, empty: bool
) -> str:
    """One chain between its neighbours; the name of its output."""
    from onnx import helper

    value = f"{prefix}x"
    if specs[0].ndim == 2:
        value = _neighbour(nodes, prefix + BEFORE, value)
    recurs = specs[-1].recurrence
    for index, spec in enumerate(() if empty else specs):
        name = f"{prefix}stage.{index}"
        if spec.recurrence is not None:
            value = _recurrent(nodes, weights, (name, value), spec.in_channels, spec.recurrence)
            continue
        if recurs is not None:
            weights.append(_alike(f"{name}.weight", (spec.in_channels, spec.out_channels)))
            nodes.append(helper.make_node("MatMul", [value, f"{name}.weight"], [f"{name}.value"], name))
            value = f"{name}.value"
            continue
        stored = _stored_shape(spec)
        weights.append(_alike(f"{name}.weight", stored))
        op, attributes = _operator(spec)
        nodes.append(helper.make_node(op, [value, f"{name}.weight"], [f"{name}.value"], name, **attributes))
        value = f"{name}.value"
    if specs[-1].ndim == 2:
        value = _neighbour(nodes, prefix + AFTER, value)
    if value == f"{prefix}x":
        nodes.append(helper.make_node("Identity", [value], [f"{prefix}nothing"]))
        value = f"{prefix}nothing"
    return value


def _alike(name: str, shape: tuple[int, ...]) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.full(shape, 0.01, np.float32), name)


def _recurrent(
    nodes: list[Any], weights: list[Any], names: tuple[str, str], inputs: int, recurrence: Recurrence
) -> str:
    """The levels of a recurrent layer; the name of its output.

    Args:
        nodes: The graph's nodes so far.
        weights: Its constants so far.
        names: The layer's, and that of its input.
        inputs: Features of the input `[steps, batch, inputs]`.
        recurrence: The layer.
    """
    from onnx import helper, numpy_helper

    name, value = names
    ways, hidden = recurrence.directions, recurrence.hidden
    gates = recurrence.products // ways
    direction = "bidirectional" if ways == 2 else "forward"
    options = {"linear_before_reset": 1} if recurrence.kind == "GRU" else {}
    for level in range(recurrence.levels):
        own = f"{name}.{level}"
        shapes = {"W": (ways, gates, inputs), "R": (ways, gates, hidden), "B": (ways, 2 * gates)}
        weights += [_alike(f"{own}.{key}", shape) for key, shape in shapes.items()]
        read = [value, *(f"{own}.{key}" for key in shapes)]
        attributes: dict[str, Any] = {"hidden_size": hidden, "direction": direction, **options}
        nodes.append(helper.make_node(recurrence.kind, read, [f"{own}.all"], own, **attributes))
        value, inputs = f"{own}.all", ways * hidden
        if level + 1 < recurrence.levels:
            weights.append(numpy_helper.from_array(np.array([0, 0, inputs], np.int64), f"{own}.shape"))
            nodes.append(helper.make_node("Transpose", [value], [f"{own}.turned"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"{own}.turned", f"{own}.shape"], [f"{own}.flat"]))
            value = f"{own}.flat"
    return value


def _neighbour(nodes: list[Any], name: str, value: str) -> str:
    from onnx import helper

    nodes.append(helper.make_node("MaxPool", [value], [f"{name}.value"], name, kernel_shape=[1, 1]))
    return f"{name}.value"


def _input_shape(spec: LayerSpec) -> tuple[int, ...]:
    return (spec.positions, spec.in_channels, *spec.input_size)


def _stored_shape(spec: LayerSpec) -> tuple[int, ...]:
    if spec.transposed:
        return (spec.in_channels, spec.out_channels // spec.groups, *spec.kernel)
    return spec.weight_shape


def _operator(spec: LayerSpec) -> tuple[str, dict[str, Any]]:
    if spec.is_linear:
        return "Gemm", {"transB": 1}
    attributes: dict[str, Any] = {
        "kernel_shape": list(spec.kernel),
        "strides": list(spec.stride),
        "dilations": list(spec.dilation),
        "pads": [before for before, _ in spec.padding] + [after for _, after in spec.padding],
        "group": spec.groups,
    }
    if spec.transposed:
        return "ConvTranspose", attributes | {"output_padding": list(spec.output_padding)}
    return "Conv", attributes
