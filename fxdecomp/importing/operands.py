"""What a node of an ONNX file says: its operands and attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxdecomp.importing.building import Builder, Unconvertible, Value


class Operands:
    """One node of an `onnx_ir` graph, and what its inputs have become.

    Attributes:
        node: The node.
        merged: Nodes that became part of another one: name of the node -> its other half's output.
    """

    def __init__(self, node: Any, builder: Builder, merged: dict[Any, str]) -> None:
        self.node = node
        self._builder = builder
        self.merged = merged

    @property
    def count(self) -> int:
        """Number of inputs, left-out ones included."""
        return len(self.node.inputs)

    def has(self, index: int) -> bool:
        """Whether an input is given."""
        return index < self.count and self.node.inputs[index] is not None

    def name(self, index: int) -> str:
        """Name of an input, empty where it is left out."""
        return str(self.node.inputs[index].name) if self.has(index) else ""

    def value(self, index: int) -> Value:
        """What an input has become."""
        if not self.has(index):
            raise Unconvertible(f"it lacks input {index}")
        return self._builder.value(self.name(index))

    def array(self, index: int) -> NDArray[Any]:
        """An input that must be a constant."""
        value = self.value(index)
        if not isinstance(value, np.ndarray):
            raise Unconvertible(f"its input {index} is computed, not a constant")
        return value

    def array_or_none(self, index: int) -> NDArray[Any] | None:
        """The same of an input that may be left out."""
        return self.array(index) if self.has(index) else None

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute as a Python value."""
        found = self.node.attributes.get(name)
        return default if found is None else found.value

    def per_axis(self, name: str, ndim: int) -> tuple[int, ...]:
        """An attribute with a number for each spatial axis, by default 1."""
        return tuple(self.attribute(name, (1,) * ndim))

    def axes(self, index: int) -> tuple[int, ...] | None:
        """Axes that older operator sets hold in an attribute and newer ones in an input."""
        if self.has(index):
            return tuple(int(axis) for axis in np.atleast_1d(self.array(index)))
        found = self.attribute("axes", None)
        return None if found is None else tuple(found)

    def ndim(self, index: int) -> int | None:
        """Number of axes of an input, None where the file does not tell."""
        shape = self.node.inputs[index].shape
        return None if shape is None else len(shape)

    def size(self, index: int, axis: int) -> int | None:
        """Length of an axis of an input, None where the file leaves it open."""
        shape = self.node.inputs[index].shape
        return shape[axis] if shape is not None and isinstance(shape[axis], int) else None

    def added_bias(self, length: int, behind: int = 0) -> tuple[str, NDArray[Any] | None]:
        """The constant that is added to the only output and to nothing else; the sum is then done.

        Args:
            length: Of the axis that it stands along.
            behind: Number of axes behind that one.
        """
        output = self.node.outputs[0]
        uses = output.uses()
        if len(uses) != 1 or output.is_graph_output() or uses[0].node.op_type != "Add":
            return "", None
        adding, index = uses[0].node, uses[0].idx
        other = adding.inputs[1 - index]
        bias = None if other is None else self._builder.values.get(other.name)
        if not isinstance(bias, np.ndarray) or bias.dtype.kind != "f":
            return "", None
        place, known = bias.ndim - 1 - behind, output.shape
        fits = bias.ndim == behind + 1 or (known is not None and behind < bias.ndim <= len(known))
        if not fits or bias.shape != tuple(length if axis == place else 1 for axis in range(bias.ndim)):
            return "", None
        self.merged[adding] = output.name
        return other.name, bias.reshape(-1)
