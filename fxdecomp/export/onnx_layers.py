"""The layers of an ONNX file: which node holds which weight, of what kind, and what one application costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxdecomp.errors import ExportError
from fxdecomp.export.metadata import read_metadata
from fxdecomp.export.naming import LAYERS
from fxdecomp.outcomes import Applied

KINDS = ("dense", "pointwise", "depthwise", "core", "linear", "other")
"""`core` is the spatial stage of a chain that is not depthwise; `dense` a spatial layer outside any chain."""

_RECURRENT = ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM")
"""The last is what ONNX Runtime makes of an LSTM in int8."""

_TRANSPARENT = ("DequantizeLinear", "QuantizeLinear", "Transpose", "Cast", "Identity", "Reshape")
_ELEMENTWISE = (
    *("Add", "BatchNormalization", "Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "Mul", "PRelu", "Relu"),
    *(
        "Sigmoid",
        "Sub",
        "Sum",
        "Tanh",
        "Gelu",
        "Elu",
        "Selu",
        "Softplus",
        "QuantizeLinear",
        "DequantizeLinear",
    ),
)


@dataclass(frozen=True, slots=True)
class OnnxLayer:
    """One node that holds a weight.

    Attributes:
        name: Name of the node; the site and stage, in a file that this package wrote.
        op: ONNX operator.
        kind: One of `KINDS`.
        weight_shape: Shape of the weight as stored.
        params: Number of entries of the weight(s).
        groups: Groups of a convolution, else 1.
    """

    name: str
    op: str
    kind: str
    weight_shape: tuple[int, ...]
    params: int
    groups: int = 1

    def macs(self, input_shape: Sequence[int], output_shape: Sequence[int]) -> int:
        """Multiply-accumulates of one application.

        Args:
            input_shape: Shape of the data input.
            output_shape: Shape of the (first) output.
        """
        if self.op == "Conv":
            # The runtime's own layouts: channels last in int8, padded to a block in NCHWc.
            channels = self.weight_shape[0]
            last = output_shape[1] != channels and output_shape[-1] == channels
            return self.params * math.prod(output_shape) // (channels if last else output_shape[1])
        if self.op == "ConvTranspose":
            return self.params * input_shape[0] * math.prod(input_shape[2:])
        if self.op in _RECURRENT:
            return self.params * math.prod(input_shape[:2])
        return self.params * math.prod(output_shape[:-1])


class OnnxLayers:
    """The layers of one file, and which of them made a value that the runtime may have fused them into.

    Attributes:
        by_name: The layers by the name of their node.
        node_names: Names of all nodes.
    """

    def __init__(self, path: Path) -> None:
        import onnx

        try:
            graph = onnx.load(str(path), load_external_data=False).graph
        except Exception as error:
            raise ExportError(f"{path} cannot be read as an ONNX model: {error}") from error
        self._producers = {output: node for node in graph.node for output in node.output if output}
        self._shapes = {item.name: tuple(item.dims) for item in graph.initializer}
        self.node_names = frozenset(node.name for node in graph.node)
        cores = _cores(path)
        self.by_name: dict[str, OnnxLayer] = {}
        self._names: dict[str, str] = {}
        for node in graph.node:
            layer = self._layer(node, cores) if node.op_type in (*LAYERS, *_RECURRENT) else None
            if layer is not None:
                self.by_name[layer.name] = layer
                self._names.update(dict.fromkeys(node.output, layer.name))

    def made(self, value: str) -> tuple[OnnxLayer, ...]:
        """The layers whose result reaches a value through element-wise operators only, nearest first."""
        found: list[OnnxLayer] = []
        front, seen = [value], {value}
        while front:
            name = front.pop(0)
            if name in self._names:
                found.append(self.by_name[self._names[name]])
                continue
            node = self._producers.get(name)
            if node is not None and node.op_type in _ELEMENTWISE:
                new = [item for item in node.input if item not in seen]
                seen.update(new)
                front += new
        return tuple(found)

    def _layer(self, node: Any, cores: frozenset[str]) -> OnnxLayer | None:
        operands = node.input if node.op_type == "MatMul" else node.input[1:2]
        shapes = [shape for shape in map(self._weight_shape, operands) if shape]
        if not shapes:
            return None
        shape = shapes[0]
        name = node.name or node.output[0]
        if node.op_type in _RECURRENT:
            params = math.prod(shape) + math.prod(self._weight_shape(node.input[2]) or (0,))
            return OnnxLayer(name, node.op_type, "other", shape, params)
        groups = next((item.i for item in node.attribute if item.name == "group"), 1)
        kind = "linear"
        if node.op_type in ("Conv", "ConvTranspose"):
            if math.prod(shape[2:]) == 1:
                kind = "pointwise"
            elif groups > 1 and groups == shape[0] * (groups if node.op_type == "ConvTranspose" else 1):
                kind = "depthwise"
            else:
                kind = "core" if name in cores else "dense"
        return OnnxLayer(name, node.op_type, kind, shape, math.prod(shape), groups)

    def _weight_shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of the constant behind a value, through quantisation and layout."""
        for _ in range(4):
            if name in self._shapes:
                return self._shapes[name] if len(self._shapes[name]) > 1 else None
            node = self._producers.get(name)
            if node is None or node.op_type not in _TRANSPARENT:
                return None
            name = node.input[0]
        return None


def _cores(path: Path) -> frozenset[str]:
    """Names of all stages of the chains that the file's record tells of."""
    metadata = read_metadata(path)
    if metadata is None or metadata.record is None:
        return frozenset()
    chains = [item for item in metadata.record.outcomes if isinstance(item, Applied)]
    return frozenset(stage for chain in chains for stage in chain.stage_names)
