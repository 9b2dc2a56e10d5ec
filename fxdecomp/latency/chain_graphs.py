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

_NARROW = 16
"""Channels of neighbours that are layers."""


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A small ONNX model, and the shapes of its inputs by name."""

    model: Any
    inputs: Mapping[str, tuple[int, ...]]


def chain_graph(specs: Sequence[LayerSpec]) -> Network:
    """A chain between two poolings.

    Weights are alike: time does not depend on their values. Padding modes other than zeros are padded with
    zeros.

    Args:
        specs: The stages, in order.
    """
    return _network([_Strand(specs[0].ndim, _input_of(specs), tuple(specs))], narrow=False)


def chains_and_ends(specs: Sequence[LayerSpec], copies: int) -> tuple[Network, Network]:
    """A chain several times side by side, and its ends alone: what the first takes longer is the chains'.

    The neighbours are layers through few channels, which keep the layout of what is between them, and which
    no runtime takes away as it does a pooling over single positions. The second network has as many strands:
    half of them two neighbours at the chain's input, half two at its output. Every strand has an input and
    weights of its own, so that none is made one with another.

    Args:
        specs: The stages, in order.
        copies: How often, an even number.
    """
    chain = _Strand(specs[0].ndim, _input_of(specs), tuple(specs))
    ends = [_Strand(specs[0].ndim, shape, ()) for shape in (_input_of(specs), _output_of(specs))]
    return _network([chain] * copies, narrow=True), _network(ends * (copies // 2), narrow=True)


@dataclass(frozen=True, slots=True)
class _Strand:
    """A chain between neighbours, or these alone.

    Attributes:
        ndim: Spatial axes.
        shape: What the chain reads.
        specs: Its stages; none for neighbours alone.
    """

    ndim: int
    shape: tuple[int, ...]
    specs: tuple[LayerSpec, ...]


def _network(strands: Sequence[_Strand], *, narrow: bool) -> Network:
    """Strands side by side; neighbours are poolings, or where it is narrow layers through few channels."""
    from onnx import TensorProto, helper

    nodes: list[Any] = []
    weights: list[Any] = []
    outputs: list[str] = []
    inputs: dict[str, tuple[int, ...]] = {}
    for index, strand in enumerate(strands):
        prefix = f"strand.{index}." if index else ""
        narrow_here = narrow and strand.ndim == 2
        batch, _, *size = strand.shape
        inputs[f"{prefix}x"] = (batch, _NARROW, *size) if narrow_here else strand.shape
        outputs.append(_chain(nodes, weights, strand, prefix, narrow=narrow_here))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_empty_tensor_value_info(value) for value in outputs],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return Network(model, inputs)


def _chain(nodes: list[Any], weights: list[Any], strand: _Strand, prefix: str, *, narrow: bool) -> str:
    """One strand; the name of its output."""
    from onnx import helper

    value, specs = f"{prefix}x", strand.specs
    channels = specs[-1].out_channels if specs else strand.shape[1]
    if narrow:
        value = _pointwise(nodes, weights, prefix + BEFORE, value, (_NARROW, strand.shape[1]))
    elif strand.ndim == 2:
        value = _pooling(nodes, prefix + BEFORE, value)
    for index, spec in enumerate(specs):
        name = f"{prefix}stage.{index}"
        if spec.recurrence is not None:
            value = _recurrent(nodes, weights, (name, value), spec.in_channels, spec.recurrence)
            continue
        if specs[-1].recurrence is not None:
            weights.append(_alike(f"{name}.weight", (spec.in_channels, spec.out_channels)))
            nodes.append(helper.make_node("MatMul", [value, f"{name}.weight"], [f"{name}.value"], name))
            value = f"{name}.value"
            continue
        stored = _stored_shape(spec)
        weights.append(_alike(f"{name}.weight", stored))
        op, attributes = _operator(spec)
        nodes.append(helper.make_node(op, [value, f"{name}.weight"], [f"{name}.value"], name, **attributes))
        value = f"{name}.value"
    if narrow:
        value = _pointwise(nodes, weights, prefix + AFTER, value, (channels, _NARROW))
    elif strand.ndim == 2:
        value = _pooling(nodes, prefix + AFTER, value)
    if value == f"{prefix}x":
        nodes.append(helper.make_node("Identity", [value], [f"{prefix}nothing"]))
        value = f"{prefix}nothing"
    return value


def _pointwise(nodes: list[Any], weights: list[Any], name: str, value: str, widths: tuple[int, int]) -> str:
    """A neighbour: a 1x1 convolution from and to so many channels."""
    from onnx import helper

    weights.append(_alike(f"{name}.weight", (widths[1], widths[0], 1, 1)))
    nodes.append(helper.make_node("Conv", [value, f"{name}.weight"], [f"{name}.value"], name))
    return f"{name}.value"


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


def _pooling(nodes: list[Any], name: str, value: str) -> str:
    """A neighbour: a pooling over single positions."""
    from onnx import helper

    nodes.append(helper.make_node("MaxPool", [value], [f"{name}.value"], name, kernel_shape=[1, 1]))
    return f"{name}.value"


def _input_of(specs: Sequence[LayerSpec]) -> tuple[int, ...]:
    first, recurs = specs[0], specs[-1].recurrence
    if recurs is not None:
        return (recurs.steps, first.positions // recurs.steps, first.in_channels)
    return (first.positions, first.in_channels, *first.input_size)


def _output_of(specs: Sequence[LayerSpec]) -> tuple[int, ...]:
    last, recurs = specs[-1], specs[-1].recurrence
    if recurs is not None:
        return (recurs.steps, last.positions // recurs.steps, recurs.directions * recurs.hidden)
    return (last.positions, last.out_channels, *last.output_size)


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
