"""What `torch.export` took for granted about the inputs, checked whenever the graph runs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram, _unlift
from torch.fx import GraphModule
from torch.utils._pytree import keystr, tree_leaves_with_path

from fxdecomp.errors import TraceError
from fxdecomp.tracing.size_expressions import NotOfSizes, check_sizes, evaluate_sizes


class InputConditions(nn.Module):
    """Raises a TraceError for inputs for which the network may take another way than the graph does.

    Of `if x.shape[1] % 4 == 0` an exported graph holds one side only. A module, so that it is copied and
    pickled with the graph.

    Args:
        conditions: Comparisons of the placeholders' sizes as text, true where the graph holds; see
            `size_expressions`.
        names: The placeholders, in order.
    """

    _is_impure = True
    """fx would remove a node without users."""

    def __init__(self, conditions: tuple[str, ...], names: tuple[str, ...]) -> None:
        super().__init__()
        self.conditions, self.names = conditions, names

    def forward(self, *values: Any) -> None:
        """Check the values of the placeholders, which may be symbolic."""
        if torch.compiler.is_dynamo_compiling() or any(isinstance(value, fx.Proxy) for value in values):
            return
        for condition in self.broken(values):
            raise TraceError(
                f"the graph holds where {condition}, which these inputs break; "
                "trace or export the network with such an example, or with that size free"
            )

    def broken(self, values: Sequence[Any]) -> tuple[str, ...]:
        """The conditions that values of the placeholders break."""
        return tuple(condition for condition in self.conditions if not self._holds(condition, values))

    def _holds(self, condition: str, values: Sequence[Any]) -> bool:
        try:
            return bool(evaluate_sizes(condition, dict(zip(self.names, values, strict=True))))
        except NotOfSizes as reason:
            raise TraceError(f"{condition[:200]!r} is no condition of a graph: {reason}") from reason


def keep_conditions(gm: GraphModule, program: ExportedProgram) -> None:
    """Let an unlifted program check the conditions of its export.

    Raises:
        TraceError: A condition is more than a comparison of sizes: it would have to be run.
    """
    inputs = gm.graph.find_nodes(op="placeholder")
    conditions = _conditions(gm, program, inputs) if inputs and program.example_inputs else ()
    for condition in conditions:
        try:
            check_sizes(condition)
        except NotOfSizes as reason:
            raise TraceError(
                f"the program holds where {condition[:200]!r}, which is no comparison of sizes: {reason}"
            ) from reason
    if conditions:
        _add(gm, conditions)


def conditions_of(gm: GraphModule) -> InputConditions | None:
    """What a graph checks of its inputs, None where it checks nothing."""
    return next((part for part in gm.modules() if isinstance(part, InputConditions)), None)


def add_condition(gm: GraphModule, condition: str) -> None:
    """Let a graph check one thing more."""
    known = conditions_of(gm)
    if known is None:
        _add(gm, (condition,))
        gm.recompile()
    elif condition not in known.conditions:
        known.conditions = (*known.conditions, condition)


def _add(gm: GraphModule, conditions: tuple[str, ...]) -> None:
    inputs = gm.graph.find_nodes(op="placeholder")
    name = "input_conditions"
    while hasattr(gm, name):
        name += "_"
    gm.add_submodule(name, InputConditions(conditions, tuple(node.name for node in inputs)).eval())
    with gm.graph.inserting_after(inputs[-1]):
        gm.graph.call_module(name, tuple(inputs))


def _conditions(gm: GraphModule, program: ExportedProgram, inputs: list[fx.Node]) -> tuple[str, ...]:
    """What the export met and fixed, in the names of the placeholders; torch names the arguments."""
    signature = inspect.signature(gm.forward)
    args, kwargs = program.example_inputs
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    paths = [path for path, _ in tree_leaves_with_path(bound.arguments)]
    met = _unlift._force_ep_signature_match(program._guards_code, paths)
    met = _unlift._force_gm_signature_match(met, signature)
    fixed = _unlift._get_input_guards_for_graph(inputs, program.range_constraints, paths)
    names = {f"L{keystr(path)}": node.name for path, node in zip(paths, inputs, strict=True)}
    return tuple(dict.fromkeys(_renamed(condition, names) for condition in [*fixed, *met]))


def _renamed(condition: str, names: dict[str, str]) -> str:
    for path in sorted(names, key=len, reverse=True):
        condition = condition.replace(path, names[path])
    return re.sub(r"\.size\(\)(?=\[)", ".shape", condition)
