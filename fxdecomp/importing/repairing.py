"""Which node of a file was converted to something else: each is run on what the file itself gives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import GraphModule, Node

from fxdecomp.export.agreement import differ
from fxdecomp.export.exact import values_inside
from fxdecomp.export.exporter import silence
from fxdecomp.graphs.origins import VALUE
from fxdecomp.graphs.untouched import copied


def misconverted(gm: GraphModule, known: Mapping[str, Any], inputs: Sequence[Any]) -> str | None:
    """The name of the first value that a graph computes otherwise than the file, None where there is none.

    Args:
        gm: The graph of a prepared model; the meta of its nodes holds the names of the model's values.
        known: What the model computes inside, from `inner_values`.
        inputs: Inputs of both.
    """
    walk = _Walk(gm, known)
    try:
        with torch.no_grad():
            walk.run(*copied(tuple(inputs)), enable_io_processing=False)
    except Exception:  # noqa: BLE001 - PyTorch cannot run it, whatever it raises
        return walk.at
    return walk.wrong


def has_wrong_shapes(model: Any, known: Mapping[str, Any]) -> bool:
    """Whether a model states lengths that are others when it runs: onnx is wrong about some operators.

    Args:
        model: An `onnx_ir.Model`.
        known: What it computes inside.
    """
    for node in model.graph:
        for value in node.outputs:
            found = getattr(known.get(str(value.name)), "shape", None)
            if found is None or value.shape is None:
                continue
            stated = tuple(value.shape)
            if len(stated) != len(found):
                return True
            if any(isinstance(a, int) and a != b for a, b in zip(stated, found, strict=True)):
                return True
    return False


class _Walk(fx.Interpreter):
    """Runs a graph on the file's own values, and compares what each node makes of them."""

    def __init__(self, gm: GraphModule, known: Mapping[str, Any]) -> None:
        super().__init__(gm)
        self._known = known
        self.wrong: str | None = None
        self.at: str | None = None

    def run_node(self, n: Node) -> Any:
        self.at = _name_at(n)
        result = super().run_node(n)
        for name in n.meta.get(VALUE, ()):
            if name not in self._known:
                continue
            if self.wrong is None and differ(self._known[name], result):
                self.wrong = name
            return _own(self._known[name])
        return result


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _name_at(node: Node) -> str | None:
    """The name of the file's value that a node computes, or helps to compute."""
    front, seen = [node], {node}
    while front:
        each = front.pop(0)
        if each.meta.get(VALUE):
            return str(each.meta[VALUE][0])
        new = [user for user in each.users if user not in seen]
        seen.update(new)
        front += new
    return None


def inner_values(model: Any, inputs: Sequence[Any]) -> dict[str, Any]:
    """What a model computes inside, by name; nothing where ONNX Runtime cannot run it opened.

    Args:
        model: An `onnx_ir.Model`.
        inputs: One for each input.
    """
    import onnx_ir

    with silence():
        return values_inside(onnx_ir.to_proto(model), inputs)
