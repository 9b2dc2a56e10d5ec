"""`trace`: an `nn.Module` and example inputs to a GraphModule whose nodes know their shapes."""

from __future__ import annotations

import copy
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.passes.shape_prop import _extract_tensor_metadata
from torch.nn.parameter import is_lazy

from fxdecomp.differences import difference, tensor_outputs
from fxdecomp.errors import TraceError, first_line
from fxdecomp.graphs import copy_sharing_tensors, derived_tensors
from fxdecomp.inputs import ExampleInputs, call_arguments, placeholder_values
from fxdecomp.records import Record, attach_record, record_of
from fxdecomp.sites.modules import Layer, is_layer
from fxdecomp.untouched import copied, outputs_of, same_chance, unchanged_buffers

_TOLERANCE = 1e-3
"""Largest difference over largest output: attention's fast path rounds differently from an exported graph."""
_TOLERANCE_HALF = 5e-2
"""The same for a network with outputs of 16 bits."""

_FIXED = {
    "all": "",
    "batch": "torch.export could leave only the first size of each input free; the others are fixed",
    "none": "torch.export could leave no size free; the graph takes inputs of the example's sizes only",
}


def trace(model: nn.Module | ExportedProgram | str | Path, example_inputs: ExampleInputs) -> GraphModule:
    """Turn a network into a graph with recorded shapes.

    `symbolic_trace` in eval mode comes first. Where it fails, gives other outputs than the network (of
    `if mask is None` it follows one answer only), or leaves layers inside leaf modules such as
    `nn.MultiheadAttention`, `torch.export` takes over. A GraphModule is taken as it is.

    Args:
        model: The network, which is not changed; or an exported program, or the path of a `.pt2` file.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments.

    Returns:
        A GraphModule in eval mode that shares its tensors with the model; `report` says which tracer made it.

    Raises:
        TraceError: The network cannot be traced, or the example inputs do not fit; says why.

    Example:
        >>> import torch, fxdecomp
        >>> gm = fxdecomp.trace(torch.nn.Linear(4, 2), torch.randn(1, 4))
        >>> [node.op for node in gm.graph.nodes]
        ['placeholder', 'get_attr', 'get_attr', 'call_function', 'output']
    """
    if isinstance(model, str | Path):
        model = load_program(Path(model))
    if isinstance(model, ExportedProgram):
        return _with_shapes(_unlifted(model), example_inputs, "torch.export")
    if isinstance(model, GraphModule):
        known = record_of(model)
        gm = copy_sharing_tensors(model)
        for module in gm.modules():
            module.training = False  # what `torch.export` makes has no `eval`
        return _with_shapes(gm, example_inputs, known.traced_with if known else "given")
    if not isinstance(model, nn.Module):
        raise TraceError(
            f"trace takes a module, an ExportedProgram or the path of a .pt2 file, got {type(model).__name__}"
        )
    frozen = _eval_copy(model)
    symbolic = _symbolic(frozen)
    network = _Reference(model, example_inputs, symbolic)
    symbolic = network.checked(symbolic)
    if isinstance(symbolic, GraphModule) and not _hides_layers(symbolic):
        return _with_shapes(symbolic, example_inputs, "symbolic_trace")
    exported = _exported(frozen, example_inputs, network)
    if not isinstance(exported, Exception):
        return _with_shapes(exported[0], example_inputs, "torch.export", note=exported[1])
    if isinstance(symbolic, GraphModule):
        return _with_shapes(symbolic, example_inputs, "symbolic_trace")
    raise TraceError(
        f"{type(model).__name__} cannot be traced. symbolic_trace: {first_line(symbolic)}. "
        f"torch.export: {first_line(exported)}. Take the data-dependent part out of the network, or pass a "
        "GraphModule of the part that is to be decomposed"
    ) from exported


class _Reference:
    """What the network itself gives for the example inputs; traced graphs must give the same.

    Raises:
        TraceError: The network does not run on the example inputs.
    """

    def __init__(self, model: nn.Module, inputs: ExampleInputs, symbolic: GraphModule | Exception) -> None:
        self._model = model
        self._inputs = inputs
        try:
            self._outputs = self._run()
        except Exception as error:
            if isinstance(symbolic, GraphModule):
                placeholder_values(symbolic, inputs)  # names the arguments where they do not fit
            raise _does_not_run(error) from error

    def _run(self) -> Any:
        """Run a copy: a network may set attributes as it runs."""
        return outputs_of(_eval_copy(self._model), self._inputs)

    def checked(self, traced: GraphModule | Exception) -> GraphModule | Exception:
        """The traced graph, or the error of a graph that computes something else than the network."""
        if isinstance(traced, Exception):
            return traced
        try:
            outputs = outputs_of(traced, self._inputs)
            placeholder_values(traced, self._inputs)  # a graph of `*args` runs, but does not say how many
        except Exception as error:  # noqa: BLE001 - a model's own code runs here and may raise anything
            return error
        gap, allowed = difference(self._outputs, outputs), _tolerance(self._outputs)
        if gap <= allowed or difference(self._outputs, self._run()) > allowed:
            return traced  # or a network that differs from itself
        how = f"its outputs differ by {gap:.2%}" if gap < inf else "its outputs are of other kinds or numbers"
        return TraceError(f"the graph computes something else, {how}")


def _tolerance(outputs: Any) -> float:
    short = any(leaf.is_floating_point() and leaf.element_size() < 4 for leaf in tensor_outputs(outputs))
    return _TOLERANCE_HALF if short else _TOLERANCE


def _eval_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode that shares the tensors, so that the model keeps its mode and costs no memory."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise TraceError(f'"{name}" is lazy and has no shape yet; run the model once on an example first')
    tensors: list[Tensor] = [*model.parameters(), *model.buffers(), *derived_tensors(model)]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors}).eval()


def _symbolic(model: nn.Module) -> GraphModule | Exception:
    try:
        with unchanged_buffers(model):
            return fx.symbolic_trace(model).eval()  # the containers too, which it makes anew
    except Exception as error:  # noqa: BLE001 - a model's own code runs here and may raise anything
        return error


def _hides_layers(gm: GraphModule) -> bool:
    """Whether a leaf module of the graph holds layers that the graph does not show."""
    leaves = (gm.get_submodule(str(node.target)) for node in gm.graph.nodes if node.op == "call_module")
    return any(
        isinstance(module, Layer) for leaf in leaves if not is_layer(leaf) for module in leaf.modules()
    )


def _exported(
    model: nn.Module, inputs: ExampleInputs, network: _Reference
) -> tuple[GraphModule, str] | Exception:
    """Export with as many free sizes as the network allows, and a note about those that had to be fixed.

    A doubled batch comes first: torch.export fixes a size of 1.
    """
    args, kwargs = call_arguments(inputs)
    own, doubled = (args, kwargs), _doubled(args, kwargs)
    attempts = [(doubled, "all"), (own, "all"), (doubled or own, "batch"), (own, "none")]
    failure: Exception = TraceError("nothing was tried")
    for values, free in attempts:
        if values is None:
            continue
        try:
            with torch.no_grad():
                program = torch.export.export(
                    model, *values, dynamic_shapes=_free_sizes(model, *values, axes=free)
                )
            gm = network.checked(_unlifted(program))
        except Exception as error:  # noqa: BLE001 - a model's own code runs here and may raise anything
            gm = error
        if isinstance(gm, GraphModule):
            return gm, _FIXED[free]
        failure = failure if free == "none" else gm
    return failure


def _doubled(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    values = [*args, *kwargs.values()]
    if not all(isinstance(value, Tensor) and value.ndim and value.shape[0] == 1 for value in values):
        return None
    return tuple(torch.cat([a, a]) for a in args), {k: torch.cat([v, v]) for k, v in kwargs.items()}


def _free_sizes(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, axes: str) -> Any:
    def free(value: object) -> Any:
        if not isinstance(value, Tensor) or axes == "none":
            return None
        return dict.fromkeys(
            range(value.ndim if axes == "all" else min(value.ndim, 1)), torch.export.Dim.AUTO
        )

    values = torch.export.dynamic_shapes._combine_args(model, args, kwargs)
    return torch.utils._pytree.tree_map(free, values)


def _unlifted(program: ExportedProgram) -> GraphModule:
    """The program as a module with its parameters by name, without the checks of its example's sizes."""
    gm = program.module(check_guards=False)
    assert isinstance(gm, GraphModule)  # narrows the declared nn.Module
    for node in list(gm.graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            gm.graph.erase_node(node)
    gm.recompile()
    return gm


def load_program(path: Path) -> ExportedProgram:
    """The exported program in a `.pt2` file.

    Raises:
        TraceError: The file cannot be read.
    """
    try:
        return torch.export.load(path)
    except Exception as error:
        raise TraceError(f"{path} is not a readable .pt2 file: {first_line(error)}") from error


class _ShapeRecorder(fx.Interpreter):
    """Runs a graph and records the metadata of every tensor."""

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        n.meta.pop("tensor_meta", None)
        if isinstance(result, Tensor):
            n.meta["tensor_meta"] = _extract_tensor_metadata(result)
        return result


def _with_shapes(gm: GraphModule, inputs: ExampleInputs, traced_with: str, *, note: str = "") -> GraphModule:
    values = copied(placeholder_values(gm, inputs))
    try:
        with torch.no_grad(), unchanged_buffers(gm), same_chance(inputs):
            _ShapeRecorder(gm).run(*values, enable_io_processing=False)
    except Exception as error:
        raise _does_not_run(error) from error
    record = record_of(gm) or Record()
    notes = (*record.notes, note) if note and note not in record.notes else record.notes
    attach_record(gm, replace(record, traced_with=traced_with, notes=notes))
    return gm


def _does_not_run(error: Exception) -> TraceError:
    return TraceError(f"the network does not run on the example inputs: {first_line(error)}")
