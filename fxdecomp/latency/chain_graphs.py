"""A chain as a small ONNX graph between two neighbours, to be timed.

ONNX Runtime's CPU provider keeps the values between 2-D convolutions in blocks of channels, and puts Reorder
nodes where a value enters or leaves that layout. Alone, every chain would pay for two of them which it does
not cost in a network. So it stands between two poolings over single positions, which take the layout that a
neighbour has: what runs between the two poolings is the chain, with the reorders that it really needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fxdecomp.layers import LayerSpec

BEFORE, AFTER = "before", "after"
"""Names of the two neighbours."""


def chain_graph(specs: Sequence[LayerSpec], *, empty: bool = False) -> tuple[Any, tuple[int, ...]]:
    """The ONNX model of a chain, and the shape of its input `x`.

    Weights are alike: time does not depend on their values. Padding modes other than zeros are padded with
    zeros.

    Args:
        specs: The stages, in order.
        empty: Leave the stages out: an input and what surrounds a chain.
    """
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    weights: list[Any] = []
    value = "x"
    if specs[0].ndim == 2:
        value = _neighbour(nodes, BEFORE, value)
    for index, spec in enumerate(() if empty else specs):
        name = f"stage.{index}"
        stored = _stored_shape(spec)
        weights.append(numpy_helper.from_array(np.full(stored, 0.01, np.float32), f"{name}.weight"))
        op, attributes = _operator(spec)
        nodes.append(helper.make_node(op, [value, f"{name}.weight"], [f"{name}.value"], name, **attributes))
        value = f"{name}.value"
    if specs[-1].ndim == 2:
        value = _neighbour(nodes, AFTER, value)
    if not nodes:
        nodes.append(helper.make_node("Identity", [value], ["nothing"]))
        value = "nothing"
    shape = _input_shape(specs[0])
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_empty_tensor_value_info(value)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), shape


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
