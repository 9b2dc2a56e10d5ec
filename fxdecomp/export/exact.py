"""What a file and its graph compute in double precision, where rounding hides nothing.

The file is run by ONNX Runtime where that has kernels for double precision, else by the reference
implementation of the onnx package, which is slow: files are left out whose pools and resizings are large.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from fxdecomp.export.exporter import silence
from fxdecomp.export.sessions import open_session
from fxdecomp.export.tensor_runs import as_array, as_value, run_on_tensors
from fxdecomp.graphs.untouched import copied
from fxdecomp.sites.opaque import Opaque

_BY_ELEMENT = {"AveragePool", "LpPool", "MaxPool", "Resize", "RoiAlign", "Upsample", "GridSample", "Erf"}
"""Operators that the reference computes number by number, about ten microseconds each."""

_MOST_BY_ELEMENT = 300_000
_MOST_NUMBERS = 20_000_000
"""Numbers that a file may compute inside, beyond which the reference takes too long."""

_CURRENT = 15
"""The operator set from which the reference computes BatchNormalization as files mean it."""


def graph_in_double(gm: GraphModule, inputs: Sequence[Any]) -> list[Any] | None:
    """What a graph gives in double precision, None where it cannot run in it.

    Leaves that hold a piece of a file run in single precision.

    Args:
        gm: The graph, which stays as it is.
        inputs: Its inputs.
    """
    try:
        given = map(_in_double, copied(tuple(inputs)))
        found = _InDouble(copy.deepcopy(gm).double()).run(*given, enable_io_processing=False)
    except Exception:  # noqa: BLE001 - not every operator has a form in double precision
        return None
    return list(pytree.tree_leaves(found))


def file_in_double(path: Path, inputs: Sequence[Any]) -> list[Any] | None:
    """What an ONNX file gives in double precision, None where neither runtime can tell.

    Args:
        path: The file.
        inputs: One for each of its inputs.
    """
    import onnx

    try:
        with silence():
            proto = onnx.load(str(path))
            sizes = values_inside(proto, inputs)
            doubled(proto)
        wide = [_in_double(value) for value in inputs]
        for run in (_by_runtime, _by_reference(sizes)):
            if (found := run(proto, wide)) is not None:
                return found
    except Exception:  # noqa: BLE001 - it only helps to judge
        return None
    return None


def values_inside(proto: Any, inputs: Sequence[Any]) -> dict[str, Any]:
    """What a model computes inside, by name; nothing where ONNX Runtime cannot run it opened.

    Args:
        proto: An `onnx.ModelProto`, which stays as it is.
        inputs: One for each input.
    """
    import onnx

    opened = onnx.ModelProto()
    opened.CopyFrom(proto)
    names = dict.fromkeys(name for node in opened.graph.node for name in node.output if name)
    del opened.graph.value_info[:]  # what is stated there may be wrong
    del opened.graph.output[:]
    opened.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    try:
        session = open_session(opened.SerializeToString(), threads=0, optimise=False)
        return dict(zip(names, run_on_tensors(session, inputs), strict=True))
    except Exception:  # noqa: BLE001 - it only helps
        return {}


def doubled(proto: Any) -> None:
    """Make every float32 of a model a float64, in place.

    Raises:
        ValueError: It has local functions, or floating-point numbers of another type.
    """
    if proto.functions:
        raise ValueError("local functions may say anything of types")
    _double_graph(proto.graph)


def _double_graph(graph: Any) -> None:
    from onnx import TensorProto

    for tensor in graph.initializer:
        _double_tensor(tensor)
    del graph.value_info[:]
    for item in (*graph.input, *graph.output):
        kind = item.type.tensor_type
        kind.elem_type = {TensorProto.FLOAT: TensorProto.DOUBLE}.get(kind.elem_type, kind.elem_type)
    for node in graph.node:
        _double_node(node)


def _double_node(node: Any) -> None:
    from onnx import AttributeProto, TensorProto, helper, numpy_helper

    for item in node.attribute:
        if item.type == AttributeProto.GRAPH:
            _double_graph(item.g)
        elif item.type == AttributeProto.TENSOR:
            _double_tensor(item.t)
        elif item.name in ("to", "dtype") and item.i == TensorProto.FLOAT:
            item.i = TensorProto.DOUBLE
        elif node.op_type == "Constant" and item.name in ("value_float", "value_floats"):
            value = np.asarray(item.f if item.name == "value_float" else list(item.floats))
            item.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(value)))
    if node.op_type == "ConstantOfShape" and not node.attribute:
        node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1))))


def _double_tensor(tensor: Any) -> None:
    from onnx import TensorProto, numpy_helper

    if tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
        raise ValueError("half precision is meant to round")
    if tensor.data_type == TensorProto.FLOAT:
        wide = numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))


def _by_runtime(proto: Any, inputs: Sequence[Any]) -> list[Any] | None:
    try:
        session = open_session(proto.SerializeToString(), threads=0, optimise=False)
        return list(pytree.tree_leaves(run_on_tensors(session, inputs)))
    except Exception:  # noqa: BLE001 - it has few kernels for double precision
        return None


def _by_reference(sizes: dict[str, Any]) -> Callable[[Any, Sequence[Any]], list[Any] | None]:
    def run(proto: Any, inputs: Sequence[Any]) -> list[Any] | None:
        from onnx.reference import ReferenceEvaluator
        from onnx.version_converter import convert_version

        slow = [name for node in proto.graph.node if node.op_type in _BY_ELEMENT for name in node.output]
        if not sizes or _numbers(sizes, slow) > _MOST_BY_ELEMENT or _numbers(sizes, sizes) > _MOST_NUMBERS:
            return None
        opset = next(item.version for item in proto.opset_import if item.domain in ("", "ai.onnx"))
        current = proto if opset >= _CURRENT else convert_version(proto, _CURRENT)
        evaluator = ReferenceEvaluator(current, new_ops=[_gather_elements()])
        feed = dict(zip(evaluator.input_names, map(as_array, inputs), strict=True))
        with np.errstate(all="ignore"):
            found: Any = evaluator.run(None, feed)
        return list(pytree.tree_leaves([as_value(each) for each in found]))

    return run


def _gather_elements() -> Any:
    """The reference of GatherElements, which onnx has for axes of up to 64 positions only."""
    from onnx.reference.op_run import OpRun

    class GatherElements(OpRun):
        def _run(self, data: Any, indices: Any, axis: int = 0) -> tuple[Any, ...]:
            axis %= data.ndim
            part = [slice(None) if place == axis else slice(size) for place, size in enumerate(indices.shape)]
            return (np.take_along_axis(data[tuple(part)], indices, axis),)

    return GatherElements


def _numbers(values: dict[str, Any], names: Any) -> int:
    return sum(value.numel() for name in names if isinstance(value := values.get(name), Tensor))


class _InDouble(fx.Interpreter):
    """Runs a graph in double precision, but for the leaves that hold a piece of a file."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return super().call_function(target, *_wide_types(args, kwargs))

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return super().call_method("double" if target == "float" else target, *_wide_types(args, kwargs))

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not isinstance(self.fetch_attr(target), Opaque):
            return super().call_module(target, args, kwargs)
        single = pytree.tree_map_only(Tensor, lambda t: t.float() if t.dtype is torch.float64 else t, args)
        found = super().call_module(target, single, kwargs)
        return pytree.tree_map_only(Tensor, _in_double, found)


def _wide_types(args: Any, kwargs: Any) -> Any:
    """Arguments that ask for single precision, asking for double."""
    return pytree.tree_map_only(
        torch.dtype, lambda kind: torch.float64 if kind is torch.float32 else kind, (args, kwargs)
    )


def _in_double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
