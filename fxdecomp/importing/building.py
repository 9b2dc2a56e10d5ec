"""The graph while it is built: what each value of the ONNX file has become.

A value is a node of the graph, a constant array, or `Sizes`: a list of whole numbers some of which are nodes.
ONNX computes shapes with tensors (Shape, Gather, Concat, Reshape); PyTorch computes them with numbers. Kept
apart, `Reshape(x, Concat(Gather(Shape(x), 0), [-1]))` becomes `x.reshape(x.size(0), -1)`.
"""

from __future__ import annotations

import keyword
import operator
import re
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from fxdecomp.graphs.origins import VALUE
from fxdecomp.importing.functions import tensor_of_sizes

_WITHOUT_NUMPY = {
    name: getattr(torch, name)
    for name in ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
}
"""Types of PyTorch that numpy has from another package."""

Number: TypeAlias = int | Node


@dataclass(frozen=True, slots=True)
class Sizes:
    """Whole numbers that depend on shapes: a list of one axis, or (`scalar`) a single one."""

    items: tuple[Number, ...]
    scalar: bool = False
    dtype: torch.dtype = torch.int64


Value: TypeAlias = Node | Sizes | NDArray[Any]


class Group:
    """Neighbouring nodes that are carried as they are: one leaf, made when something takes what it gives.

    Attributes:
        nodes: The nodes of the file.
    """

    def __init__(self) -> None:
        self.nodes: list[Any] = []


class Unconvertible(Exception):  # noqa: N818 - becomes part of one error about the whole file
    """Why a node has no counterpart; the reason in words."""


class Builder:
    """A GraphModule in the making.

    Attributes:
        values: What the values of the file have become, by name.
        waiting: Values of groups that are not in the graph yet.
        zeros: Nodes that are known to be all zero.
    """

    def __init__(self, place: Callable[[Builder, Group], None]) -> None:
        """Begin with an empty graph.

        Args:
            place: Puts a group into the graph and its values among `values`.
        """
        self.values: dict[str, Value] = {}
        self.waiting: dict[str, Group] = {}
        self.zeros: set[Node] = set()
        self._place_group = place
        self._root = nn.Module()
        self._graph = Graph()
        self._inputs: set[str] = set()
        self._names: set[str] = set()
        self._containers: set[str] = set()
        self._constants: dict[int, tuple[NDArray[Any], Node]] = {}  # the array is kept, so is its id
        self._modules: dict[Any, str] = {}

    def value(self, name: str) -> Value:
        """What a value of the file has become."""
        if name in self.waiting:
            self._place_group(self, self.waiting[name])
        if name not in self.values:
            raise Unconvertible(f"its input {name!r} is given nowhere")
        return self.values[name]

    def placeholder(self, name: str) -> None:
        """Add an input."""
        word = _numbered(identifier(name), self._inputs)
        self._inputs.add(word)
        self.values[name] = self._graph.placeholder(word)

    def call(self, function: Any, *args: Any, **kwargs: Any) -> Node:
        """Call a function, such as `torch.relu`."""
        return self._graph.call_function(function, args, kwargs)

    def method(self, name: str, *args: Any, **kwargs: Any) -> Node:
        """Call a method of a tensor."""
        return self._graph.call_method(name, args, kwargs)

    def item(self, call: Node, index: int) -> Node:
        """One of several values that a call gives."""
        return self.call(operator.getitem, call, index)

    def module(self, name: str, key: Any, module: nn.Module, *args: Any) -> Node:
        """Call a module; one that was added under the same key is used again."""
        if key not in self._modules:
            path = self._place([part for part in re.sub(r"[^\w.]", "_", name).split(".") if part])
            _add(self._root, path, module)
            self._modules[key] = path
        return self._graph.call_module(self._modules[key], args)

    def tensor(self, value: Value) -> Node:
        """A value as a tensor of the graph."""
        if isinstance(value, Node):
            return value
        if isinstance(value, Sizes):
            items: Any = value.items[0] if value.scalar else list(value.items)
            if any(isinstance(item, Node) for item in value.items):
                return self.call(tensor_of_sizes, items, dtype=value.dtype)
            value = np.asarray(items, str(value.dtype).removeprefix("torch."))
        if id(value) not in self._constants:
            name = self._free(f"constant_{len(self._constants)}")
            self._root.register_buffer(name, as_tensor(value))
            self._constants[id(value)] = value, self._graph.get_attr(name)
        return self._constants[id(value)][1]

    def finish(self, outputs: Sequence[str], parts: Set[str] = frozenset()) -> GraphModule:
        """The module: one output as it is, several as a dictionary.

        Args:
            outputs: Names of the values that it gives.
            parts: Names of values that became a part of another: what stands for them computes more.
        """
        nodes = {name: self.tensor(self.value(name)) for name in outputs}
        for name, value in self.values.items():
            if isinstance(value, Node) and name not in parts:
                value.meta.setdefault(VALUE, []).append(name)
        self._graph.output(next(iter(nodes.values())) if len(nodes) == 1 else nodes)
        gm = GraphModule(self._root, self._graph)
        gm.graph.eliminate_dead_code()
        gm.delete_all_unused_submodules()
        gm.recompile()
        return gm.eval()

    def _place(self, parts: Sequence[str]) -> str:
        """A path for a layer, numbered so that it lies in no other layer and takes no container's place."""
        path = ""
        for parent in parts[:-1]:
            path = _numbered(f"{path}{parent}", self._names)
            self._containers.add(path)
            path += "."
        return self._free(f"{path}{parts[-1]}")

    def _free(self, name: str) -> str:
        """The name, numbered where it is taken."""
        found = _numbered(name, self._names | self._containers)
        self._names.add(found)
        return found


def _numbered(name: str, taken: Set[str]) -> str:
    found, count = name, 0
    while found in taken:
        count += 1
        found = f"{name}_{count}"
    return found


def _add(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, leaf = path.split(".")
    for parent in parents:
        if parent not in dict(root.named_children()):
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.add_module(leaf, module)


def identifier(name: str) -> str:
    """A name that Python takes for an argument of a method."""
    word = re.sub(r"\W", "_", name) or "input"
    if keyword.iskeyword(word) or word == "self":
        return f"{word}_"
    return f"_{word}" if word[0].isdigit() else word


def as_tensor(array: NDArray[Any]) -> Tensor:
    """A copy of an array, scalars included.

    Raises:
        Unconvertible: PyTorch has no tensors of its type.
    """
    if array.dtype.name in _WITHOUT_NUMPY:
        bits = np.array(array).view(f"i{array.dtype.itemsize}")
        return torch.from_numpy(bits).view(_WITHOUT_NUMPY[array.dtype.name])
    try:
        return torch.from_numpy(np.array(array, order="C"))
    except TypeError as error:
        raise Unconvertible(f"PyTorch has no tensors of {array.dtype}") from error


def numbers(value: Value) -> tuple[Number, ...]:
    """A value as whole numbers.

    Raises:
        Unconvertible: If it is computed from data.
    """
    if isinstance(value, Sizes):
        return value.items
    if isinstance(value, Node):
        raise Unconvertible("a shape or an index is computed from data")
    if value.dtype.kind not in "iub":
        raise Unconvertible(f"a shape or an index is of {value.dtype}")
    return tuple(int(item) for item in np.atleast_1d(value))
