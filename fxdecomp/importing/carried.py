"""`Carried`: nodes of an ONNX file that PyTorch has no word for, run in ONNX Runtime where they stand.

    x, y -> [NonMaxSuppression, Loop, ...] -> boxes, count

Neighbouring nodes form one leaf, with a session of its own that is made on the first call: the types of the
inputs are those of the values that come. Values that subgraphs take from outside are inputs too.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from fxdecomp.errors import ExportError, FxdecompError, first_line
from fxdecomp.export.sessions import open_session
from fxdecomp.export.tensor_runs import run_on_tensors
from fxdecomp.sites.opaque import InnerLayer, Opaque

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN")


@final
class Carried(Opaque):
    """Runs nodes of a file; copies share its session, and no gradient comes through it."""

    def __init__(self, data: bytes, inputs: Sequence[str]) -> None:
        """Hold the nodes.

        Args:
            data: An `onnx.ModelProto` without inputs, whose outputs have no types; its `value_info` tells
                those of inputs, as far as they are known.
            inputs: Names of the values that it takes.
        """
        super().__init__()
        self._data = data
        self._inputs = tuple(inputs)
        self._sessions: dict[tuple[Any, ...], Any] = {}
        proto = self._proto()
        kinds = dict.fromkeys(f"{node.domain}.{node.op_type}".strip(".") for node in proto.graph.node)
        self.contents = ", ".join(kinds)
        self.size = len(proto.graph.node)
        self._count = len(proto.graph.output)
        self.layers = tuple(_layers_of(proto.graph))

    def forward(self, *values: Any) -> Any:
        """What the nodes give: one value as it is, several as a tuple.

        Raises:
            ExportError: onnxruntime is missing, or cannot run the nodes on these values.
        """
        found = self._run(values)
        tensors = [value for value in values if isinstance(value, Tensor)]
        device = tensors[0].device if tensors else torch.device("cpu")
        found = [each.to(device) if isinstance(each, Tensor) else each for each in found]
        trained = [value for value in tensors if value.requires_grad]
        if trained and torch.is_grad_enabled():
            found = [
                _Stop.apply(self.contents, each, *trained)  # type: ignore[no-untyped-call]
                if isinstance(each, Tensor) and each.is_floating_point()
                else each
                for each in found
            ]
        return found[0] if self._count == 1 else tuple(found)

    def extra_repr(self) -> str:
        """The operators, and what tells these nodes from others."""
        digest = hashlib.sha256(self._data).hexdigest()[:16]
        return f"{self.contents}; {len(self._inputs)} -> {self._count}, {digest}"

    def _proto(self) -> Any:
        import onnx

        return onnx.load_model_from_string(self._data)

    def _run(self, values: Sequence[Any]) -> list[Any]:
        """The outputs; some operators want to know the shapes of their inputs, and get a session a shape."""
        types = tuple(map(_type_of, values))
        shapes = tuple(tuple(value.shape) if isinstance(value, Tensor) else None for value in values)
        for key in ((types, None), (types, shapes)):
            try:
                if key not in self._sessions:
                    self._sessions[key] = self._opened(*key)
                return run_on_tensors(self._sessions[key], values)
            except ExportError:
                raise
            except Exception as error:  # noqa: BLE001 - it is raised below
                refusal = error
        raise ExportError(f"ONNX Runtime cannot run {self.contents}: {first_line(refusal)}") from refusal

    def _opened(self, types: tuple[Any, ...], shapes: tuple[Any, ...] | None) -> Any:
        proto = self._proto()
        known = {item.name: item for item in proto.graph.value_info}
        del proto.graph.value_info[:]
        for index, (name, kind) in enumerate(zip(self._inputs, types, strict=True)):
            declared = known.get(name) if kind == "nothing" or isinstance(kind, tuple) else None
            proto.graph.input.append(
                declared or _declared(name, kind, None if shapes is None else shapes[index])
            )
        for optimise in (False, True):  # some operators are run in their optimised form alone
            try:
                return open_session(proto.SerializeToString(), threads=0, optimise=optimise)
            except ExportError:
                raise
            except Exception as error:  # noqa: BLE001 - it is raised below
                refusal = error
        raise refusal

    def __deepcopy__(self, memo: dict[int, Any]) -> Carried:
        copy = Carried.__new__(Carried)
        vars(copy).update({key: value for key, value in vars(self).items() if not key.startswith("__")})
        memo[id(self)] = copy
        return copy

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_sessions": {}}


class _Stop(torch.autograd.Function):
    """Passes a value on, and says at the way back what no gradient comes through."""

    @staticmethod
    def forward(ctx: Any, contents: str, value: Tensor, *sources: Tensor) -> Tensor:
        ctx.contents = contents
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise FxdecompError(
            f"no gradient comes through {ctx.contents}, which run in ONNX Runtime; train what stands behind "
            "them, or block by block"
        )


def _type_of(value: Any) -> Any:
    """The type of a value as far as a session needs it."""
    if isinstance(value, Tensor):
        return value.dtype
    if isinstance(value, list | tuple):
        return ("sequence", _type_of(value[0]) if value else None)
    return "text" if value is not None else "nothing"


def _declared(name: str, kind: Any, shape: tuple[int, ...] | None) -> Any:
    from onnx import TensorProto, helper

    if isinstance(kind, tuple):
        element = helper.make_tensor_type_proto(_number(kind[1] or torch.float32), None)
        return helper.make_value_info(name, helper.make_sequence_type_proto(element))
    if kind == "nothing":
        element = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
        return helper.make_value_info(name, helper.make_optional_type_proto(element))
    return helper.make_tensor_value_info(name, TensorProto.STRING if kind == "text" else _number(kind), shape)


def _number(dtype: Any) -> int:
    import onnx_ir

    if dtype == "text":
        return int(onnx_ir.DataType.STRING)
    from onnx_ir.tensor_adapters import from_torch_dtype

    return int(from_torch_dtype(dtype))


def _layers_of(graph: Any, outer: Mapping[str, int] | None = None) -> Iterator[InnerLayer]:
    """The layers of a piece of a file, those of its subgraphs among them.

    Args:
        graph: The graph of the piece, or of a node in it.
        outer: Numbers of weights that the graph may take from outside.
    """
    sizes = {**(outer or {}), **{item.name: math.prod(item.dims) for item in graph.initializer}}
    for node in graph.node:
        if node.op_type in _LAYERS:
            operands = node.input if node.op_type == "MatMul" else node.input[1:3]
            params = sum(sizes.get(name, 0) for name in operands)
            yield InnerLayer(node.name or node.output[0], node.op_type, params)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _layers_of(inner, sizes)
