"""`trace`: an `nn.Module` and example inputs to a GraphModule whose nodes know their shapes."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.passes.shape_prop import _extract_tensor_metadata

from fxdecomp.errors import TraceError, first_line
from fxdecomp.graphs.copies import copy_sharing_tensors
from fxdecomp.graphs.inputs import ExampleInputs, placeholder_values
from fxdecomp.graphs.records import Record, attach_record, record_of, remember_examples
from fxdecomp.graphs.untouched import copied, one_at_a_time, outputs_of, same_chance, unchanged_buffers
from fxdecomp.tracing.exported import exported, load_program, training_notes, unlifted
from fxdecomp.tracing.model_copies import eval_copy
from fxdecomp.tracing.reference import difference, tensor_outputs
from fxdecomp.tracing.symbolic import traced_symbolically

_TOLERANCE = 1e-3
"""Largest relative difference of an output: other kernels round differently."""
_TOLERANCE_HALF = 5e-2
"""The same for a network with outputs of 16 bits."""


@one_at_a_time
def trace(model: nn.Module | ExportedProgram | str | Path, example_inputs: ExampleInputs) -> GraphModule:
    """Turn a network into a graph with recorded shapes.

    `symbolic_trace` in eval mode comes first. Where it fails, gives other outputs than the network (of
    `if mask is None` it follows one answer only), forgets what the network does to its buffers, or leaves
    layers inside leaf modules such as `nn.MultiheadAttention`, `torch.export` takes over. A GraphModule is
    taken as it is.

    Args:
        model: The network, which is not changed; or an exported program, or the path of a `.pt2` file.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments.

    Returns:
        A GraphModule in eval mode that shares its tensors with the model; `report` says which tracer made it.
        The operations of a program that was exported in train mode stay as they are, which `report` remarks.

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
        gm = unlifted(model)
        return _with_shapes(gm, example_inputs, "torch.export", notes=training_notes(gm))
    if isinstance(model, GraphModule):
        known = record_of(model)
        gm = copy_sharing_tensors(model)
        for module in gm.modules():
            module.training = False  # what `torch.export` makes has no `eval`
        traced_with = known.traced_with if known else "given"
        return _with_shapes(gm, example_inputs, traced_with, notes=training_notes(gm))
    if not isinstance(model, nn.Module):
        raise TraceError(
            f"trace takes a module, an ExportedProgram or the path of a .pt2 file, got {type(model).__name__}"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError("a ScriptModule cannot be traced; give the torch.nn.Module that it was made from")
    return _traced(model, example_inputs)


def _traced(model: nn.Module, example_inputs: ExampleInputs) -> GraphModule:
    symbolic = traced_symbolically(eval_copy(model))
    network = _Reference(model, example_inputs, symbolic.graph)
    graph = network.checked(symbolic.graph)
    if isinstance(graph, GraphModule) and not symbolic.lack:
        return _with_shapes(graph, example_inputs, "symbolic_trace", notes=symbolic.notes)
    program = exported(eval_copy(model), example_inputs, network.checked, network.agrees)
    if not isinstance(program, Exception):
        gm, notes = program
        notes = (*symbolic.notes, *notes, *network.notes())
        return _with_shapes(gm, example_inputs, "torch.export", notes=notes)
    if isinstance(graph, GraphModule):
        note = f"torch.export, which would {symbolic.lack}, failed: {first_line(program)}"
        return _with_shapes(graph, example_inputs, "symbolic_trace", notes=(*symbolic.notes, note))
    raise TraceError(
        f"{type(model).__name__} cannot be traced. symbolic_trace: {first_line(graph)}. "
        f"torch.export: {first_line(program)}. Take the data-dependent part out of the network, or pass a "
        "GraphModule of the part that is to be decomposed"
    ) from program


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
        return outputs_of(eval_copy(self._model), self._inputs)

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

    def agrees(self, traced: GraphModule, inputs: ExampleInputs) -> bool:
        """Whether a graph gives what the network gives, on inputs that it was not traced with."""
        try:
            wanted, got = outputs_of(eval_copy(self._model), inputs), outputs_of(traced, inputs)
            allowed = _tolerance(wanted)
            return (
                difference(wanted, got) <= allowed
                or difference(wanted, outputs_of(eval_copy(self._model), inputs)) > allowed
            )
        except Exception:  # noqa: BLE001 - a model's own code runs here and may raise anything
            return False

    def notes(self) -> tuple[str, ...]:
        """A note where the fast path of attention gives other outputs, at padded places above all."""
        if not any(isinstance(module, nn.TransformerEncoderLayer) for module in self._model.modules()):
            return ()
        try:
            fast = outputs_of(eval_copy(self._model), self._inputs, fast_attention=True)
        except Exception:  # noqa: BLE001 - a model's own code runs here and may raise anything
            return ()
        if difference(self._outputs, fast) <= _tolerance(self._outputs):
            return ()
        return (
            "the fast path of nn.TransformerEncoderLayer gives other outputs, as it writes zeros at padded "
            "places; the graph computes what torch.backends.mha.set_fastpath_enabled(False) gives",
        )


def _tolerance(outputs: Any) -> float:
    short = any(leaf.is_floating_point() and leaf.element_size() < 4 for leaf in tensor_outputs(outputs))
    return _TOLERANCE_HALF if short else _TOLERANCE


class _ShapeRecorder(fx.Interpreter):
    """Runs a graph and records the metadata of every tensor."""

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        n.meta.pop("tensor_meta", None)
        if isinstance(result, Tensor):
            n.meta["tensor_meta"] = _extract_tensor_metadata(result)
        return result


def _with_shapes(
    gm: GraphModule, inputs: ExampleInputs, traced_with: str, *, notes: tuple[str, ...] = ()
) -> GraphModule:
    values = copied(placeholder_values(gm, inputs))
    try:
        with torch.no_grad(), unchanged_buffers(gm), same_chance(inputs):
            _ShapeRecorder(gm).run(*values, enable_io_processing=False)
    except Exception as error:
        raise _does_not_run(error) from error
    record = record_of(gm) or Record()
    new = tuple(note for note in notes if note not in record.notes)
    attach_record(gm, replace(record, traced_with=traced_with, notes=record.notes + new))
    remember_examples(gm, inputs)
    return gm


def _does_not_run(error: Exception) -> TraceError:
    return TraceError(f"the network does not run on the example inputs: {first_line(error)}")
