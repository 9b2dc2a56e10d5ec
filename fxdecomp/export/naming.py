"""Names in the ONNX file: nodes and initialisers carry the name of the site and stage that they come from.

`Conv(x, features.3.core.weight)` is named `features.3.core`. The exporter computes the weight of some layers
(a Linear over three axes is `MatMul(x, Transpose(weight))`) and then folds the computation into a nameless
constant; the computed value is named before that, so that the constant is `classifier.weight_transposed`.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from fxdecomp.errors import ExportError

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN")
"""Operators that hold weights; each of their nodes is named after its site."""

_RECURRENT = ("LSTM", "GRU", "RNN")
_SCOPES = "pkg.torch.onnx.name_scopes"


def name_weights(model: Any) -> None:
    """Name what is computed from a weight alone after the weight. For a model that is not optimised yet.

    Args:
        model: An `onnx_ir.Model`, changed in place.
    """
    taken = _value_names(model.graph)
    for node in model.graph:
        if node.op_type != "Transpose" or not node.inputs[0].is_initializer():
            continue
        name = f"{node.inputs[0].name}_transposed"
        if name not in taken:
            node.outputs[0].name = name
            taken.add(name)


def name_after_sites(model: Any) -> None:
    """Name layers after their sites, and drop what the exporter noted about the machine that it ran on.

    A weight that several nodes read gives them `site`, `site_1`, ...

    Args:
        model: An `onnx_ir.Model`, changed in place.
    """
    nodes = list(model.graph)
    taken = {node.name for node in nodes}
    for node in nodes:
        site = _site(node)
        if site:
            taken.discard(node.name)
            node.name = _unique(site, taken)
            taken.add(node.name)
            if node.op_type in _RECURRENT:
                _name_recurrent_weights(node, model.graph)
    for node in nodes:
        # Stack traces and pretty-printed FX nodes: paths of the user's disk, and different on every machine.
        for key in [key for key in node.metadata_props if key != _SCOPES]:
            del node.metadata_props[key]
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    model.graph.metadata_props.clear()


def name_ends(model: Any, inputs: Sequence[str] | None, outputs: Sequence[str] | None) -> None:
    """Give a model's inputs and outputs other names, such as those of the file that it replaces.

    Args:
        model: An `onnx_ir.Model`, changed in place.
        inputs: Names in order, None to leave them.
        outputs: Likewise.

    Raises:
        ExportError: If there are more or fewer than the model has, or one comes twice.
    """
    ends = [(model.graph.inputs, inputs, "inputs"), (model.graph.outputs, outputs, "outputs")]
    wanted: dict[str, Any] = {}
    for values, names, kind in ends:
        if names is not None and len(names) != len(values):
            raise ExportError(f"the model has {len(values)} {kind}, {len(names)} names were given: {names}")
        for value, name in zip(values, names or (), strict=False):
            if name in wanted:
                raise ExportError(f"two inputs or outputs are to be named {name!r}")
            wanted[name] = value
    taken = _value_names(model.graph)
    for value in [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]:
        if value.name in wanted and wanted[value.name] is not value:
            value.name = _unique(f"{value.name}_1", taken | set(wanted))
    for name, value in wanted.items():
        value.name = name


def weight_site(name: str) -> str:
    """The site that an initialiser belongs to: `a.b` for `a.b.weight`, empty where the name does not tell."""
    for suffix in (".weight", ".weight_transposed"):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return ""


def _site(node: Any) -> str:
    if node.op_type not in LAYERS:
        return ""
    for value in node.inputs[1:2] if node.op_type not in ("MatMul",) else node.inputs:
        if value is not None and value.is_initializer() and weight_site(value.name):
            return weight_site(value.name)
    if not any(value is not None and value.is_initializer() for value in node.inputs):
        return ""
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    return next((scope for scope in reversed(scopes[:-1]) if scope), "")


def _name_recurrent_weights(node: Any, graph: Any) -> None:
    taken = _value_names(graph)
    for value, letter in zip(node.inputs[1:4], "WRB", strict=False):
        name = f"{node.name}.{letter}"
        if value is not None and value.is_initializer() and len(value.uses()) == 1 and name not in taken:
            value.name = name


def _unique(name: str, taken: set[str]) -> str:
    if name not in taken:
        return name
    return next(candidate for i in range(1, len(taken) + 2) if (candidate := f"{name}_{i}") not in taken)


def _value_names(graph: Any) -> set[str]:
    names = {value.name for value in graph.inputs} | set(graph.initializers)
    return names | {value.name for node in graph for value in node.outputs}
