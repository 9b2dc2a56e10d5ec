"""The nodes of a prepared ONNX file, one after the other, as nodes of a graph.

What has no counterpart is carried: it waits until something takes what it gives, so that its neighbours may
join it, and is then put into the graph as one leaf.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
from torch.fx import GraphModule

from fxdecomp.importing.arranging import ARRANGING
from fxdecomp.importing.building import Builder, Group, Unconvertible
from fxdecomp.importing.carried import Carried
from fxdecomp.importing.elementwise import ELEMENTWISE
from fxdecomp.importing.layers import LAYERS, Handler
from fxdecomp.importing.operands import Operands
from fxdecomp.importing.products import PRODUCTS
from fxdecomp.importing.recurrent_layers import RECURRENT

_log = logging.getLogger(__name__)

HANDLERS: Mapping[str, Handler] = {**LAYERS, **PRODUCTS, **RECURRENT, **ELEMENTWISE, **ARRANGING}

_SINCE = {
    **dict.fromkeys(("Softmax", "LogSoftmax", "Split"), 13),
    **dict.fromkeys(("Resize", "Pad", "Clip"), 11),
    "Slice": 10,
    "BatchNormalization": 9,
    "Expand": 8,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor"), 7),
    **dict.fromkeys(("Equal", "Greater", "Less", "Gemm", "Dropout", "PRelu", "AveragePool"), 7),
    **dict.fromkeys(("Reshape", "Cast", "Tile", "Concat", "Max", "Min", "Sum", "GRU", "LSTM"), 7),
}
"""The operator set since which an operator is what its handler takes it for; the others have always been."""

_DRAWN = (
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
)
"""Operators that give something else each time."""

_FILLING = ("ConstantOfShape", "Expand", "Tile")
"""Operators that make much of little, which is better made as it is needed."""


def converted(model: Any, carry: Set[str] = frozenset()) -> GraphModule:
    """The graph of a prepared model; the meta of its nodes holds the names of the file's values.

    Args:
        model: An `onnx_ir.Model`.
        carry: Names of values whose nodes are carried, counterpart or not.
    """
    return _Conversion(model, carry).graph()


class _Conversion:
    """One file on its way."""

    def __init__(self, model: Any, carry: Set[str]) -> None:
        self._model = model
        self._carry = carry
        self._builder = Builder(self._place)
        self._merged: dict[Any, str] = {}
        self._constants: dict[str, Any] = {}
        self._order = {node: index for index, node in enumerate(model.graph)}
        values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
        self._values = {str(value.name): value for value in values}
        self._readers: dict[str, set[Any]] = {}
        for node in model.graph:
            for name in _read_by(node):
                self._readers.setdefault(name, set()).add(node)
        self._outputs = [str(value.name) for value in model.graph.outputs]
        found = (int(v) for domain, v in model.opset_imports.items() if domain in ("", "ai.onnx"))
        self._opset = next(found, 1)

    def graph(self) -> GraphModule:
        """Convert every node."""
        builder = self._builder
        for name, value in self._model.graph.initializers.items():
            self._add_constant(name, value.const_value)
        for value in self._model.graph.inputs:
            if value.name not in builder.values:  # older files list their weights among the inputs
                builder.placeholder(value.name)
        for node in self._model.graph:
            self._take(node)
        return builder.finish(self._outputs, set(self._merged.values()))

    def _add_constant(self, name: str, tensor: Any) -> None:
        self._constants[name] = tensor
        self._builder.values[name] = np.asarray(tensor.numpy())

    def _take(self, node: Any) -> None:
        if node in self._merged:
            self._builder.values[node.outputs[0].name] = self._builder.values[self._merged[node]]
            return
        if node.op_type not in _FILLING and self._is_computed_now(node):
            return
        if not self._has_handler(node):
            self._add_to_group(node)
            return
        waiting = self._builder.waiting
        groups = dict.fromkeys(waiting[name] for name in _read_by(node) if name in waiting)
        merged = dict(self._merged)
        try:
            self._convert(node)
        except Exception as reason:  # noqa: BLE001 - whatever a handler does not foresee is carried as it is
            _log.info("%s (%s) is carried: %s", node.name or node.outputs[0].name, node.op_type, reason)
            self._merged = merged
            for group in groups:
                self._reopen(group)
            self._add_to_group(node)

    def _has_handler(self, node: Any) -> bool:
        if node.domain not in ("", "ai.onnx") or self._carry & {value.name for value in node.outputs}:
            return False
        if node.op_type == "Constant":
            return True
        return node.op_type in HANDLERS and self._opset >= _SINCE.get(node.op_type, 1)

    def _convert(self, node: Any) -> None:
        if node.op_type == "Constant":
            self._add_constant(node.outputs[0].name, _constant(node))
            return
        found = HANDLERS[node.op_type](self._builder, Operands(node, self._builder, self._merged))
        values = found if isinstance(found, tuple) else (found,)
        for output in node.outputs[len(values) :]:
            if output.uses() or output.is_graph_output():
                raise Unconvertible(f"its output {output.name!r} is used")
        for output, value in zip(node.outputs, values, strict=False):
            self._builder.values[output.name] = value

    def _add_to_group(self, node: Any) -> None:
        """Let a node wait with those neighbours that wait."""
        waiting = self._builder.waiting
        groups = list(dict.fromkeys(waiting[name] for name in _read_by(node) if name in waiting))
        group = groups[0] if groups else Group()
        for other in groups[1:]:
            group.nodes += other.nodes
        group.nodes.append(node)
        group.nodes.sort(key=self._order.__getitem__)
        self._reopen(group)

    def _is_computed_now(self, node: Any) -> bool:
        """Compute a node that takes constants alone, if that can be."""
        import onnx_ir

        read = list(dict.fromkeys(_read_by(node)))
        if not read or node.op_type in _DRAWN or any(name not in self._constants for name in read):
            return False
        group, made = Group(), [str(output.name) for output in node.outputs if output.name]
        group.nodes.append(node)
        try:
            found = Carried(self._piece(group, read, made, ()), ())()
            values = [found] if len(made) == 1 else list(found)
            tensors = {name: onnx_ir.tensor(value.numpy()) for name, value in zip(made, values, strict=True)}
        except Exception:  # noqa: BLE001 - it is carried then, as it is
            return False
        for name, tensor in tensors.items():
            self._add_constant(name, tensor)
        return True

    def _reopen(self, group: Group) -> None:
        for node in group.nodes:
            for output in node.outputs:
                if output.name:
                    self._builder.values.pop(output.name, None)
                    self._builder.waiting[output.name] = group

    def _place(self, builder: Builder, group: Group) -> None:
        """Put a group into the graph: one call of a leaf, and what it gives by name."""
        made = [str(output.name) for node in group.nodes for output in node.outputs if output.name]
        for name in made:
            del builder.waiting[name]
        inside = set(group.nodes)
        given = [n for n in made if n in self._outputs or self._readers.get(n, set()) - inside]
        read = list(dict.fromkeys(name for node in group.nodes for name in _read_by(node)))
        taken = [name for name in read if name not in made and name not in self._constants]
        constants = [name for name in read if name in self._constants]
        arguments = [builder.tensor(builder.value(name)) for name in taken]
        leaf = Carried(self._piece(group, constants, given, taken), taken)
        call = builder.module(f"carried_{group.nodes[0].op_type}", leaf, leaf, *arguments)
        for index, name in enumerate(given):
            builder.values[name] = call if len(given) == 1 else builder.item(call, index)

    def _piece(self, group: Group, constants: list[str], given: list[str], taken: Sequence[str]) -> bytes:
        """The nodes as a model of their own, without inputs."""
        import onnx
        from onnx_ir import serde

        tensors = []
        for name in constants:
            tensor = onnx.TensorProto()
            tensor.CopyFrom(serde.serialize_tensor(self._constants[name]))
            tensor.name = name
            tensors.append(tensor)
        graph = onnx.helper.make_graph(
            [serde.serialize_node(node) for node in group.nodes],
            "carried",
            [],
            [onnx.helper.make_empty_tensor_value_info(name) for name in given],
            tensors,
            value_info=[
                serde.serialize_value(self._values[name])
                for name in taken
                if name in self._values and self._values[name].type is not None
            ],
        )
        model = onnx.helper.make_model(
            graph,
            opset_imports=[onnx.helper.make_opsetid(*item) for item in self._model.opset_imports.items()],
            ir_version=max(int(self._model.ir_version), 8),
            functions=[serde.serialize_function(function) for function in self._model.functions.values()],
        )
        data: bytes = model.SerializeToString()
        return data


def _read_by(node: Any) -> Iterator[str]:
    """Names of the values that a node reads, those that its subgraphs take from outside among them."""
    import onnx_ir

    yield from (str(value.name) for value in node.inputs if value is not None and value.name)
    for attribute in node.attributes.values():
        graphs = []
        if attribute.type == onnx_ir.AttributeType.GRAPH:
            graphs = [attribute.value]
        elif attribute.type == onnx_ir.AttributeType.GRAPHS:
            graphs = list(attribute.value)
        for graph in graphs:
            yield from _taken_by(graph)


def _taken_by(graph: Any) -> Iterator[str]:
    """Names of the values that a subgraph takes from outside."""
    own = {value.name for value in graph.inputs} | set(graph.initializers)
    own |= {value.name for node in graph for value in node.outputs}
    for node in graph:
        yield from (name for name in _read_by(node) if name not in own)
    yield from (str(value.name) for value in graph.outputs if value.name not in own)


def _constant(node: Any) -> Any:
    """The tensor that a Constant gives."""
    import onnx_ir

    for name, attribute in node.attributes.items():
        if name == "value":
            return attribute.value
        if name in ("value_int", "value_ints"):
            return onnx_ir.tensor(np.asarray(attribute.value, np.int64))
        if name in ("value_float", "value_floats"):
            return onnx_ir.tensor(np.asarray(attribute.value, np.float32))
    raise Unconvertible("its value is neither a tensor nor a number")
