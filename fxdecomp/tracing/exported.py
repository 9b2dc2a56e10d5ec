"""What `torch.export` makes: of a network with as many free sizes as it allows, and of a `.pt2` file."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import free_symbols

from fxdecomp.errors import TraceError, first_line
from fxdecomp.graphs.copies import copy_sharing_tensors, hook_tables
from fxdecomp.graphs.inputs import Arguments, ExampleInputs, call_arguments, placeholder_values
from fxdecomp.graphs.spelling import spell_keywords
from fxdecomp.graphs.untouched import one_at_a_time, outputs_of, plain_attention
from fxdecomp.tracing.archives import check_archive
from fxdecomp.tracing.guards import keep_conditions
from fxdecomp.tracing.layouts import correct_conditions
from fxdecomp.tracing.model_copies import eval_copy

_FIXED = {
    "all": (),
    "batch": ("torch.export could leave only the first size of each input free; the others are fixed",),
    "none": ("torch.export could leave no size free; the graph takes inputs of the example's sizes only",),
}

_Call = tuple[tuple[Any, ...], dict[str, Any]]


def exported(
    model: nn.Module,
    inputs: ExampleInputs,
    checked: Callable[[GraphModule], GraphModule | Exception],
    agrees: Callable[[GraphModule, Arguments], bool],
) -> tuple[GraphModule, tuple[str, ...]] | Exception:
    """Export with as many free sizes as the network allows, and notes about those that had to be fixed.

    A doubled batch comes first: torch.export fixes a size of 1.

    Args:
        model: The network in eval mode.
        inputs: What it is called with.
        checked: Gives the graph back, or an error where it computes something else than the network.
        agrees: Whether it computes what the network does on other inputs.
    """
    own = call_arguments(inputs)
    doubled = _doubled(own)
    attempts = [(doubled, "all"), (own, "all"), (doubled or own, "batch"), (own, "none")]
    failure: Exception = TraceError("nothing was tried")
    for values, free in attempts:
        if values is None:
            continue
        try:
            with torch.no_grad(), plain_attention():
                program = torch.export.export(
                    model, *values, dynamic_shapes=_free_sizes(model, *values, axes=free)
                )
            graph = unlifted(program)
            gm = checked(graph)
            correct_conditions(graph, program, values, agrees)
            if not isinstance(gm, GraphModule):  # conditions of layouts may have refused its own inputs
                gm = checked(graph)
        except Exception as error:  # noqa: BLE001 - a model's own code runs here and may raise anything
            gm = error
        if isinstance(gm, GraphModule):
            return gm, _FIXED[free] or _fixed_axes(gm, model, own)
        failure = failure if free == "none" else gm
    return failure


def _doubled(call: _Call) -> _Call | None:
    """The call with twice the batch, where a batch is 1; None where none is."""

    def begins_with_one(value: object) -> bool:
        return isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == 1

    if not any(map(begins_with_one, pytree.tree_leaves(call))):
        return None
    doubled: _Call = pytree.tree_map(lambda v: torch.cat([v, v]) if begins_with_one(v) else v, call)
    return doubled


def _fixed_axes(gm: GraphModule, model: nn.Module, call: _Call) -> tuple[str, ...]:
    """A note about the axes that torch.export fixed without a word, though the network takes other sizes.

    The first axis is always told of: inputs often share their batch, so that one alone cannot be changed.
    """
    nodes = [node for node in gm.graph.nodes if node.op == "placeholder"]
    fixed = [
        f"axis {axis} of {node.target}"
        for node, value in zip(nodes, placeholder_values(gm, Arguments(*call)), strict=True)
        if isinstance(value, Tensor) and "val" in node.meta
        for axis, size in enumerate(node.meta["val"].shape)
        if not free_symbols(size) and (axis == 0 or _takes_longer(model, call, value, axis))
    ]
    if not fixed:
        return ()
    return (f"torch.export fixed {', '.join(fixed)}; the graph takes the example's sizes there only",)


def _takes_longer(model: nn.Module, call: _Call, tensor: Tensor, axis: int) -> bool:
    longer = torch.cat([tensor, tensor], axis)
    try:
        outputs_of(
            eval_copy(model), Arguments(*pytree.tree_map(lambda v: longer if v is tensor else v, call))
        )
    except Exception:  # noqa: BLE001 - a model's own code runs here and may raise anything
        return False
    return True


def _free_sizes(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, axes: str) -> Any:
    """Free axes as torch.export takes them: by argument, None for an argument or a call without any."""
    if axes == "none":
        return None

    def free(value: object) -> Any:
        if not isinstance(value, Tensor):
            return None
        return dict.fromkeys(
            range(value.ndim if axes == "all" else min(value.ndim, 1)), torch.export.Dim.AUTO
        )

    values = torch.export.dynamic_shapes._combine_args(model, args, kwargs)
    return pytree.tree_map(free, values)


def unlifted(program: ExportedProgram) -> GraphModule:
    """The program as a module with its parameters by name, and the conditions of its export."""
    gm = program.module(check_guards=False)
    assert isinstance(gm, GraphModule)  # narrows the declared nn.Module
    for hooks in hook_tables(gm):
        hooks.clear()  # torch's own check of the inputs
    keep_conditions(gm, program)
    for module in gm.modules():
        module.training = False  # it has no `eval`
    spell_keywords(gm.graph)
    gm.recompile()
    return copy_sharing_tensors(gm)


def training_notes(gm: GraphModule) -> tuple[str, ...]:
    """A note about operations that were exported in train mode, such as a dropout that draws in every call.

    They stay as they are: a network may well want a dropout in eval mode.
    """
    names = [node.target._schema.name for node in gm.graph.nodes if _trains(node)]
    if not names:
        return ()
    listed = ", ".join(dict.fromkeys(name.removeprefix("aten::") for name in names))
    return (
        f"exported in train mode: {listed}; call model.eval() before torch.export to have them in eval mode",
    )


def _trains(node: Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    names = [argument.name for argument in node.target._schema.arguments]
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    without_statistics = given.get("running_mean", node) is None  # takes those of the batch in eval mode too
    return not without_statistics and (given.get("train") is True or given.get("training") is True)


@one_at_a_time  # torch's reader keeps its state in a global
def load_program(path: Path, *, trust: bool = False) -> ExportedProgram:
    """The exported program in a `.pt2` file.

    Args:
        path: The file.
        trust: Open it with all that torch runs as it loads: pickles, compiled libraries, text. By default a
            file that holds more than data is refused.

    Raises:
        TraceError: The file cannot be read, or holds what would run; says what.
    """
    if not path.is_file():
        raise TraceError(f"{path} is not a readable .pt2 file: there is no such file")
    if not trust:
        check_archive(path)
    try:
        if trust and _is_old_archive(path):
            return torch.export.load(path)
        from torch.export.pt2_archive._package import load_pt2  # which takes seconds to import

        programs = load_pt2(str(path)).exported_programs
    except Exception as error:
        raise TraceError(f"{path} is not a readable .pt2 file: {first_line(error)}") from error
    if "model" not in programs:
        raise TraceError(f"{path} is not a readable .pt2 file: it holds no program that is named 'model'")
    return programs["model"]


def _is_old_archive(path: Path) -> bool:
    """Whether the file is of a torch before 2.8, whose weights are pickles."""
    with zipfile.ZipFile(path) as archive:
        return "version" in archive.namelist()
