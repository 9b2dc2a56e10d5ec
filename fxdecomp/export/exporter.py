"""PyTorch's current ONNX exporter, quietly: a graph and example inputs -> an ONNX model in memory."""

from __future__ import annotations

import importlib
import logging
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from fxdecomp.errors import ExportError
from fxdecomp.export.examples import with_batch
from fxdecomp.export.naming import name_after_sites, name_ends, name_weights
from fxdecomp.export.pooling import settle_windows
from fxdecomp.export.recurrent import WholeLayers, check_recurrent, translations
from fxdecomp.graphs.inputs import has_batch
from fxdecomp.graphs.untouched import copied, evaluating, unchanged_buffers

_CHATTERING = ("torch.onnx", "torch.export", "torch._export", "onnxscript", "onnx_ir")
_REARRANGING = ("Concat", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")


def dynamic_shapes(
    inputs: Sequence[Tensor], *, batch: bool, axes: Mapping[int, str]
) -> tuple[dict[int, Any], ...]:
    """What `torch.export` is told about each input: axis -> symbol.

    Args:
        inputs: The example inputs.
        batch: Whether the first axis of the inputs that share it varies.
        axes: Further axes that vary, by the name of their symbol, in every input that has them.
    """
    symbols = {axis: torch.export.Dim(name) for axis, name in axes.items()}
    size = torch.export.Dim("batch")
    shapes = []
    for value, batched in zip(inputs, has_batch(inputs), strict=True):
        varying: dict[int, Any] = {axis: symbol for axis, symbol in symbols.items() if axis < value.ndim}
        if batch and batched:
            varying[0] = size
        shapes.append(varying)
    return tuple(shapes)


def export_graph(
    gm: GraphModule, inputs: Sequence[Tensor], *, batch: bool, axes: Mapping[int, str], opset: int | None
) -> Any:
    """Run the exporter and give nodes and initialisers their sites' names.

    An axis of length 1 is taken for a constant by `torch.export`, so a dynamic batch is exported from an
    example of at least two rows.

    Args:
        gm: The graph, not changed.
        inputs: The example inputs.
        batch: Whether the batch is dynamic.
        axes: Further dynamic axes and the names of their symbols.
        opset: ONNX operator set, None for the exporter's own choice.

    Returns:
        An `onnx_ir.Model`.

    Raises:
        ExportError: If the exporter refuses the graph.
    """
    check_recurrent(gm)
    if batch:
        first = next(value for value, batched in zip(inputs, has_batch(inputs), strict=True) if batched)
        inputs = with_batch(inputs, max(2, first.shape[0]))
    with silence(), evaluating(gm), unchanged_buffers(gm), torch.no_grad(), WholeLayers():
        try:
            program = torch.onnx.export(
                gm,
                copied(tuple(inputs)),
                dynamo=True,
                verbose=False,
                optimize=False,
                opset_version=opset,
                output_names=output_names(gm),
                dynamic_shapes=dynamic_shapes(inputs, batch=batch, axes=axes),
                custom_translation_table=translations(),
            )
            if program is None:
                raise ExportError("torch.onnx.export gave no model")
            name_weights(program.model)
            with slices_at_slices():
                program.optimize()
            fold_weights(program.model)
            settle_windows(program.model)
        except ExportError:
            raise
        except Exception as error:
            raise ExportError(f"torch.onnx.export refuses the graph: {_cause(error)}") from error
    written = program.model.opset_imports[""]
    if opset not in (None, written):
        raise ExportError(
            f"torch.onnx.export writes operator set {written} where {opset} was asked for; "
            f"pass opset={written}, or leave it to the exporter"
        )
    _check_free(program.model, axes)
    name_after_sites(program.model)
    # An input that is also an output was named after the output.
    names = [str(node.target) for node in gm.graph.nodes if node.op == "placeholder"]
    given = program.model.graph.inputs
    kept = [n if str(v.name).endswith("_orig") else str(v.name) for n, v in zip(names, given, strict=False)]
    name_ends(program.model, kept, None)
    return program.model


def _check_free(model: Any, axes: Mapping[int, str]) -> None:
    """Raise where the exporter fixed an axis that was to be free: it does so without a word."""
    for value in model.graph.inputs:
        for axis in axes:
            length = value.shape[axis] if axis < len(value.shape) else ""
            if isinstance(length, int):
                raise ExportError(
                    f"the exporter fixes axis {axis} of input {value.name!r} to {length}; leave it out of "
                    "dynamic_axes"
                )


@contextmanager
def slices_at_slices() -> Iterator[None]:
    """Let the optimiser look for two slices that make a Split at slices only.

    It would look for them at every node, and go through the whole graph each time: the time of an export
    grew with the square of the number of nodes. What other threads optimise at the same time is none of it.
    """
    from onnxscript.rewriter.rules.common import slice_split_rule as rule

    thread = threading.get_ident()

    def try_rewrite(model: Any, graph: Any, node: Any, **options: Any) -> Any:
        if node.op_type != "Slice" and threading.get_ident() == thread:
            return None
        return type(rule).try_rewrite(rule, model, graph, node, **options)

    rule.try_rewrite = try_rewrite
    try:
        yield
    finally:
        vars(rule).pop("try_rewrite", None)  # another thread's export may have ended first


def fold_weights(model: Any) -> None:
    """Compute what only rearranges weights now: the exporter leaves large ones to be computed at every run.

    The weights of an LSTM are slices put together again; a transposed weight that two layers share stays a
    Transpose.

    Args:
        model: An `onnx_ir.Model`, changed in place.
    """
    from onnxscript import optimizer

    size = 1 << 40
    optimizer.fold_constants(
        model,
        onnx_shape_inference=False,
        input_size_limit=size,
        output_size_limit=size,
        should_fold=lambda node: node.op_type in _REARRANGING,
    )
    optimizer.remove_unused_nodes(model)


def output_names(gm: GraphModule) -> list[str]:
    """`output`, or the keys of a dictionary of outputs, or `output_0`, `output_1`, ..."""
    node = next(node for node in gm.graph.nodes if node.op == "output")
    value = node.args[0]
    taken = {str(item.target) for item in gm.graph.nodes if item.op == "placeholder"}
    leaves = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Node)]
    if isinstance(value, dict) and len(leaves) == len(value):
        names = [str(key) for key in value]
    elif len(leaves) == 1:
        names = ["output"]
    else:
        names = [f"output_{index}" for index in range(len(leaves))]
    return [f"{name}_out" if name in taken else name for name in names]


def _cause(error: BaseException) -> str:
    """The innermost error: the exporter wraps what is wrong in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])}"[:400]


@contextmanager
def silence() -> Iterator[None]:
    """Keep the exporter's own deprecations and chatter from the user; real errors still come through.

    What other threads log at the same time is none of it, and passes.
    """
    thread = threading.get_ident()

    def by_others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    for module in ("torch.onnx._internal.exporter._compat", "onnxscript.optimizer"):
        with suppress(ImportError):  # their loggers are made as they are imported
            importlib.import_module(module)
    known = [name for name in logging.Logger.manager.loggerDict if name.startswith(_CHATTERING)]
    loggers = [logging.getLogger(name) for name in {*known, *_CHATTERING}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", message=r"(?s)The tensor attributes? .* assigned during export")
        warnings.filterwarnings("ignore", message=r"(?s)Exporting a model while it is in training mode")
        warnings.filterwarnings("ignore", message=r"# The axis name: .* will not be used, since it shares")
        try:
            for logger in loggers:
                logger.addFilter(by_others)  # what fails is raised as well
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(by_others)
