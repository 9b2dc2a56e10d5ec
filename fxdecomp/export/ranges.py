"""What the int8 values of a file span: read back from its QuantizeLinear nodes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ActivationRange:
    """One value of a network in int8: `x = scale (q - zero)`, and the ends of what q can say.

    Attributes:
        name: The node that gives the value, or the network's input.
        low: The least value that is not cut off.
        high: The largest.

    Example:
        >>> from fxdecomp.export.ranges import ActivationRange
        >>> round(ActivationRange("features.0", -1.0, 4.1).step, 4)
        0.02
    """

    name: str
    low: float
    high: float

    @property
    def step(self) -> float:
        """The distance of two values that are told apart: 255 steps make the range."""
        return (self.high - self.low) / 255


def activation_ranges(path: Path) -> tuple[ActivationRange, ...]:
    """The ranges of the values that a file quantises by one scale each, in the order of the file.

    Args:
        path: An ONNX file with QDQ nodes; of another there are none.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node.name or output for node in graph.node for output in node.output}
    found: dict[str, ActivationRange] = {}
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or len(node.input) < 3 or node.input[0] in stored:
            continue
        if not {*node.input[1:3]} <= stored.keys():
            continue
        scale = numpy_helper.to_array(stored[node.input[1]])
        zero = numpy_helper.to_array(stored[node.input[2]])
        if scale.size != 1 or zero.dtype.itemsize != 1:
            continue
        least = 0 if zero.dtype.kind == "u" else -128
        low, high = (float(scale) * (end - int(zero)) for end in (least, least + 255))
        found[node.input[0]] = ActivationRange(makers.get(node.input[0], node.input[0]), low, high)
    return tuple(found.values())
