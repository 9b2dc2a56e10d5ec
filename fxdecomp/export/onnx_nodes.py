"""Nodes of a graph as nodes of an ONNX file: the layers of chains, and what stands between them.

Conv2d, Linear(x [N, F]), Linear(x [..., F])    Conv, Gemm, MatMul (and Add)
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.fx import GraphModule, Node
from torch.fx.graph_module import _get_attr
from torch.nn import functional as F  # noqa: N812

from fxdecomp.export.matching import NotSpliceable
from fxdecomp.export.onnx_moves import stated_part, stated_sizes
from fxdecomp.export.parity import to_numpy
from fxdecomp.sites.base import shape_of
from fxdecomp.sites.geometry import same_padding

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class NodeWriter:
    """Writes nodes of one graph for one file.

    Attributes:
        nodes: The ONNX nodes so far.
        constants: The arrays that they read, by name.
    """

    def __init__(
        self,
        gm: GraphModule,
        named: Mapping[Node, str],
        wanted: Mapping[Node, str],
        *,
        taken: set[str],
        node_names: set[str],
        opset: int,
    ) -> None:
        """Begin with no nodes.

        Args:
            gm: The graph.
            named: Nodes whose values the file has, by the name there.
            wanted: What the values of others are to be called.
            taken: Names of the file's values; those that are given here are added.
            node_names: Names of its nodes, likewise.
            opset: The file's default operator set.
        """
        self.nodes: list[Any] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self._gm = gm
        self._named = dict(named)
        self._wanted = wanted
        self._taken = taken
        self._node_names = node_names
        self._opset = opset
        self._stored: dict[tuple[str, str], str] = {}

    def value(self, node: Node, name: str = "") -> str:
        """The name of a node's value in the file; what computes it is written where the file has it not.

        Args:
            node: The node.
            name: A name that its value is to have, perhaps besides another; by default any.
        """
        if node.op == "get_attr" and node not in self._named:
            self._named[node] = self._constant(str(node.target), "value", self._stored_at(node))
        if node not in self._named:
            own = str(node.target) if node.op == "call_module" else node.name
            self._named[node] = self._wanted.get(node) or self._free(own)
            self._write(node, self._named[node])
        if name and name != self._named[node]:
            self._add("Identity", [self._named[node]], name, node.name)
        return name or self._named[node]

    def _stored_at(self, node: Node) -> NDArray[Any]:
        value = _get_attr(self._gm, str(node.target))
        if not isinstance(value, torch.Tensor):
            raise NotSpliceable(f"{node.target} is no tensor")
        return to_numpy(value)

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Add a constant; its name is numbered where it is taken."""
        found = self._free(name)
        self.constants[found] = array
        return found

    def _write(self, node: Node, name: str) -> None:
        if node.op == "call_module":
            module = self._gm.get_submodule(str(node.target))
            writes = next((write for kinds, write in _MODULES if type(module) in kinds), None)
            if writes is not None and len(node.args) == 1 and not node.kwargs:
                writes(self, node, module, name)
                return
        elif node.target in _CALLS:
            _CALLS[node.target](self, node, name)
            return
        what = (
            type(self._gm.get_submodule(str(node.target))).__name__ if node.op == "call_module" else node.op
        )
        raise NotSpliceable(f"{node.name!r} ({what}) is neither a node of the file nor a layer of a chain")

    def _source(self, node: Node) -> str:
        source = node.args[0]
        if not isinstance(source, Node):
            raise NotSpliceable(f"{node.name!r} takes no value of the graph")
        return self.value(source)

    def _add(self, op: str, inputs: Sequence[str], output: str, name: str, **attributes: Any) -> None:
        from onnx import helper

        name = _numbered(name, self._node_names)
        self.nodes.append(helper.make_node(op, list(inputs), [output], name, **attributes))

    def _free(self, name: str) -> str:
        return _numbered(name, self._taken)

    def _tensors(self, path: str, module: nn.Module, keys: Sequence[str]) -> list[str]:
        """Names of a module's tensors in the file; those that it has not are left out."""
        return [self._constant(path, k, to_numpy(getattr(module, k))) for k in keys if _has(module, k)]

    def _constant(self, path: str, key: str, array: NDArray[Any]) -> str:
        """The name of a constant, the same for the same layer."""
        if (path, key) not in self._stored:
            self._stored[path, key] = self.constant(f"{path}.{key}", array)
        return self._stored[path, key]

    def _conv(self, node: Node, module: Any, name: str) -> None:
        if module.padding_mode != "zeros":
            raise NotSpliceable(f"{node.target} pads by {module.padding_mode}, which ONNX's Conv does not")
        begin, end = _padding(module)
        source, pads = node.args[0], _zero_padding(node.args[0], len(begin))
        if pads is not None and source not in self._named:
            assert isinstance(source, Node)  # `_zero_padding` has looked
            begin, end = (
                tuple(map(sum, zip(*pair, strict=True))) for pair in zip((begin, end), pads, strict=True)
            )
            value = self._source(source)
        else:
            value = self._source(node)
        weights = self._tensors(str(node.target), module, ("weight", "bias"))
        attributes = _spatial(module) | {"pads": [*begin, *end]}
        self._add("Conv", [value, *weights], name, str(node.target), **attributes)

    def _conv_transpose(self, node: Node, module: Any, name: str) -> None:
        value = self._source(node)
        weights = self._tensors(str(node.target), module, ("weight", "bias"))
        attributes = _spatial(module) | {
            "pads": [*module.padding, *module.padding],
            "output_padding": list(module.output_padding),
        }
        self._add("ConvTranspose", [value, *weights], name, str(node.target), **attributes)

    def _linear(self, node: Node, module: nn.Linear, name: str) -> None:
        path, value = str(node.target), self._source(node)
        shape = shape_of(node.args[0]) if isinstance(node.args[0], Node) else None
        flat = shape is not None and len(shape) == 2
        if flat and self._opset >= 7 and (module.bias is not None or self._opset >= 11):
            self._add("Gemm", [value, *self._tensors(path, module, ("weight", "bias"))], name, path, transB=1)
            return
        matrix = self._constant(path, "weight_transposed", to_numpy(module.weight).T.copy())
        product = name if module.bias is None else self._free(f"{path}.product")
        self._add("MatMul", [value, matrix], product, path)
        if module.bias is not None:
            along = {} if self._opset >= 7 else {"broadcast": 1}
            self._add(
                "Add", [product, *self._tensors(path, module, ("bias",))], name, f"{path}.bias", **along
            )

    def _norm(self, node: Node, module: Any, name: str) -> None:
        if self._opset < 9:
            raise NotSpliceable(
                f"{node.target} is a BatchNorm of operator set {self._opset}, with other weights"
            )
        keys = ("weight", "bias", "running_mean", "running_var")
        inputs = [self._source(node), *self._tensors(str(node.target), module, keys)]
        self._add("BatchNormalization", inputs, name, str(node.target), epsilon=float(module.eps))

    def _pad(self, node: Node, name: str) -> None:
        """Zeros around the last axes, or what is cut off there."""
        shape = shape_of(node)
        pads = None if shape is None else _zero_padding(node, len(shape))
        if pads is None:
            raise NotSpliceable(f"{node.name!r} pads with other values, or an unknown number of axes")
        value, widths = self._source(node), [*pads[0], *pads[1]]
        if self._opset < 11:
            self._add("Pad", [value], name, node.name, pads=widths)
            return
        amounts = self._constant(node.name, "pads", np.asarray(widths, np.int64))
        self._add("Pad", [value, amounts], name, node.name)

    def _transpose(self, node: Node, name: str) -> None:
        source = node.args[0]
        shape = shape_of(source) if isinstance(source, Node) else None
        if shape is None:
            raise NotSpliceable(f"{node.name!r} turns axes, and their number is not known")
        first, second = (int(axis) % len(shape) for axis in node.args[1:3])  # type: ignore[arg-type]
        order = list(range(len(shape)))
        order[first], order[second] = order[second], order[first]
        self._add("Transpose", [self._source(node)], name, node.name, perm=order)

    def _reshape(self, node: Node, name: str) -> None:
        sizes = self._constant(node.name, "sizes", stated_sizes(node))
        self._add("Reshape", [self._source(node), sizes], name, node.name)

    def _narrow(self, node: Node, name: str) -> None:
        if self._opset < 10:
            raise NotSpliceable(
                f"{node.name!r} takes a part of a value, which operator set {self._opset} cannot"
            )
        part = [self._constant(node.name, key, array) for key, array in stated_part(node).items()]
        self._add("Slice", [self._source(node), *part], name, node.name)

    def _add_constant(self, node: Node, name: str) -> None:
        """A sum or a product with a value that the file has."""
        values = [self.value(each) for each in node.args if isinstance(each, Node)]
        if len(values) != 2 or node.kwargs or self._opset < 7:
            raise NotSpliceable(f"{node.name!r} is neither a node of the file nor a layer of a chain")
        kind = "Add" if node.target in (torch.add, operator.add) else "Mul"
        self._add(kind, values, name, node.name)


_Write = Callable[[NodeWriter, Node, Any, str], None]
_MODULES: Sequence[tuple[tuple[type[nn.Module], ...], _Write]] = (
    (_CONVS, NodeWriter._conv),
    (_TRANSPOSED, NodeWriter._conv_transpose),
    ((nn.Linear,), NodeWriter._linear),
    (_NORMS, NodeWriter._norm),
)
_CALLS: Mapping[Any, Callable[[NodeWriter, Node, str], None]] = {
    "transpose": NodeWriter._transpose,
    "reshape": NodeWriter._reshape,
    torch.narrow: NodeWriter._narrow,
    torch.transpose: NodeWriter._transpose,
    F.pad: NodeWriter._pad,
    torch.add: NodeWriter._add_constant,
    torch.mul: NodeWriter._add_constant,
}


def _has(module: nn.Module, key: str) -> bool:
    return getattr(module, key) is not None


def _spatial(module: Any) -> dict[str, Any]:
    return {
        "kernel_shape": list(module.kernel_size),
        "strides": list(module.stride),
        "dilations": list(module.dilation),
        "group": module.groups,
    }


def _padding(module: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A convolution's own padding at the beginnings and at the ends."""
    if module.padding == "same":
        pairs = same_padding(module.kernel_size, module.dilation)
        return tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
    pads = (0,) * len(module.kernel_size) if module.padding == "valid" else tuple(module.padding)
    return pads, pads


def _zero_padding(source: Any, ndim: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The zeros that a node puts around its input's spatial axes, None where it does something else."""
    if not isinstance(source, Node) or source.target is not F.pad or len(source.args) != 2:
        return None
    if any(value not in (None, 0, "constant") for value in source.kwargs.values()):
        return None
    widths = source.args[1]
    if (
        not isinstance(widths, tuple | list)
        or len(widths) > 2 * ndim
        or not all(type(w) is int for w in widths)
    ):
        return None
    pairs = [widths[index : index + 2] for index in range(0, len(widths), 2)]
    pairs += [(0, 0)] * (ndim - len(pairs))
    return tuple(int(p[0]) for p in reversed(pairs)), tuple(int(p[1]) for p in reversed(pairs))


def _numbered(name: str, taken: set[str]) -> str:
    """The name, numbered where it is taken; it is taken then."""
    found, count = name, 0
    while found in taken:
        count += 1
        found = f"{name}_{count}"
    taken.add(found)
    return found
