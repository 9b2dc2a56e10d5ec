"""`to_onnx`: a graph into an ONNX file that is checked before it gets its name.

Everything happens in a temporary folder beside the target; the finished file is moved in one step. A process
that dies on the way, or a check that fails, leaves what was there before.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxdecomp.calibration import Batch, Calibration
from fxdecomp.errors import ExportError
from fxdecomp.export.capturing import (
    Captured,
    axis_name,
    brief,
    cannot_be_dynamic,
    capture,
    check_inputs,
    fixed_note,
)
from fxdecomp.export.examples import as_inputs, flat_graph, other_outputs
from fxdecomp.export.export_report import ExportReport
from fxdecomp.export.fp16 import Fp16
from fxdecomp.export.int8 import Int8
from fxdecomp.export.lowering import Precision, balance_model, chosen_precision, fitting_batches, lower
from fxdecomp.export.metadata import describe_quantization, metadata_props
from fxdecomp.export.naming import name_ends
from fxdecomp.export.parity import Agreement, check_parity, run_graph, to_numpy
from fxdecomp.export.running import Feed
from fxdecomp.export.sessions import onnxruntime
from fxdecomp.files import OutputError, beside, check_file, publish
from fxdecomp.graphs.inputs import ExampleInputs
from fxdecomp.graphs.records import Record, record_of
from fxdecomp.graphs.untouched import one_at_a_time
from fxdecomp.progress import Progress, silent

EXTERNAL_DATA_BYTES = 1_800_000_000
"""Models with more weights than this keep them in a second file: an ONNX file ends at 2 GiB."""


@one_at_a_time
def to_onnx(
    gm: GraphModule,
    example_inputs: ExampleInputs,
    path: Path | str,
    *,
    dynamic_batch: bool | None = None,
    dynamic_axes: Sequence[int] = (),
    opset: int | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    quantize: Precision | None = None,
    calibration: Calibration | Iterable[Batch] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> ExportReport:
    """Write a graph as an ONNX file, checked by onnx and compared with PyTorch through ONNX Runtime.

    Nodes and initialisers carry the names of their sites and stages, and the file carries the record of the
    transformation (see `read_metadata`). The comparison takes the example and seeded random inputs like it,
    at the example's batch size and, when the batch is dynamic, at others. A quantised file is made from the
    compared one; its error is measured on calibration inputs, and stages that cannot bear it stay in fp32.

    Args:
        gm: The graph; exported in evaluation mode and left as it is.
        example_inputs: A tensor, a tuple or a dict, as the network takes them.
        path: The file to write; its folder must exist. Weights above 1.8 GB go to `<path>.data` beside it.
        dynamic_batch: True requires that the file takes any batch size, False fixes the example's. By default
            it is dynamic wherever the graph allows it, and the report says where it does not.
        dynamic_axes: Further axes of the inputs whose length is free, such as `(2, 3)` for images.
        opset: ONNX operator set, None for the exporter's own choice.
        input_names: Names of the file's inputs; by default those of the graph's placeholders.
        output_names: Names of its outputs; by default `output`, the keys of a dictionary, or `output_0` and
            so on.
        quantize: `"int8"` or `"fp16"`, or `Int8` / `Fp16` with options.
        calibration: Unlabelled inputs for the quantisation. int8 needs them; fp16 takes the example without.
        seed: Seed of the random inputs.
        progress: Told of the progress of long work.

    Returns:
        What was written and how well it agrees.

    Raises:
        ParityError: If the file computes something else.
        ExportError: If the graph cannot be exported or quantised, the check refuses the model, or onnxruntime
            is missing.

    Example:
        >>> import tempfile, torch, fxdecomp
        >>> from pathlib import Path
        >>> gm = fxdecomp.trace(torch.nn.Sequential(torch.nn.Linear(64, 32)), torch.randn(1, 64))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "small.onnx"
        ...     written = fxdecomp.export.to_onnx(gm, torch.randn(1, 64), path)
        >>> written.inputs, written.outputs, written.dynamic_batch
        (('input',), ('output',), True)
    """
    onnxruntime()
    path = Path(path)
    try:
        check_file(path)
    except OutputError as error:
        raise ExportError(str(error)) from error
    names, inputs = as_inputs(gm, example_inputs)
    precision = chosen_precision(quantize, calibrated=calibration is not None)
    if precision is not None and any(item.dtype is torch.float64 for item in gm.parameters()):
        raise ExportError(
            f"{precision.kind} is made of float32, and the network has weights in float64; call .float() on "
            "it before tracing and on its inputs, or export without quantize"
        )
    batches = [] if calibration is None else Calibration.of(calibration).values(gm)
    axes = {axis: axis_name(axis, inputs) for axis in dynamic_axes}
    order = _Order(
        flat_graph(gm),
        _record_of(gm, precision),
        names,
        inputs,
        axes,
        opset,
        input_names,
        output_names,
        precision,
        batches,
        seed,
    )
    quantization = None
    with _on_disk(path), beside(path) as folder:
        draft = folder / path.name
        written = _compared(order, draft, dynamic_batch)
        if precision is not None:
            exact, draft = draft, folder / "lower" / path.name
            draft.parent.mkdir()
            feeds, balanced = written.feeds, written.balanced
            quantization = lower(exact, draft, feeds, precision, balanced=balanced, progress=progress)
            describe_quantization(draft, quantization)
            _check(draft)
        size = sum(file.stat().st_size for file in draft.parent.iterdir() if file.is_file())
        _publish(draft, path)
    model = written.captured.model
    return ExportReport(
        path=path,
        size_bytes=size,
        opset=int(model.opset_imports[""]),
        inputs=tuple(value.name for value in model.graph.inputs),
        outputs=tuple(value.name for value in model.graph.outputs),
        dynamic_batch=written.captured.dynamic_batch,
        dynamic_axes=tuple(axes),
        parity=written.parity,
        quantization=quantization,
        notes=written.captured.notes + _told_of_others(gm),
    )


def _told_of_others(gm: GraphModule) -> tuple[str, ...]:
    others = other_outputs(gm)
    return (f"outputs that are no tensors are not in the file: {', '.join(others)}",) if others else ()


def _record_of(gm: GraphModule, precision: Int8 | Fp16 | None) -> Record | None:
    """What the file says of its making; a lowered file has not the graph's distance to the original."""
    record = record_of(gm)
    return record if record is None or precision is None else replace(record, quality=None)


@dataclass(frozen=True, slots=True, eq=False)
class _Order:
    """What is to be written, the arguments of `to_onnx` checked."""

    gm: GraphModule
    record: Record | None
    placeholders: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    axes: Mapping[int, str]
    opset: int | None
    input_names: Sequence[str] | None
    output_names: Sequence[str] | None
    precision: Int8 | Fp16 | None
    batches: Sequence[Sequence[Any]]
    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class _Written:
    """A file that computes what the graph computes, and what may be quantised with."""

    captured: Captured
    feeds: Sequence[Feed]
    balanced: int
    parity: tuple[Agreement, ...]


def _compared(order: _Order, draft: Path, dynamic_batch: bool | None) -> _Written:
    """Write a file in full precision and compare it; with a fixed batch if it does not bear a free one."""
    gm, inputs = order.gm, order.inputs
    captured = capture(gm, inputs, dynamic_batch=dynamic_batch, axes=order.axes, opset=order.opset)
    model = captured.model
    name_ends(model, order.input_names, order.output_names)
    names = tuple(order.input_names or order.placeholders)
    example = dict(zip(names, inputs, strict=True))
    model.metadata_props.update(metadata_props(order.record, example, int(model.opset_imports[""])))
    tests = check_inputs(inputs, captured.dynamic_batch, tuple(order.axes), order.seed)
    batches, skipped = fitting_batches(model, names, order.batches)
    captured = replace(captured, notes=captured.notes + skipped)
    feeds = [
        dict(zip(names, map(to_numpy, values[: len(names)]), strict=True)) for values in batches or tests[:3]
    ]
    save_model(model, draft)
    balanced = balance_model(model, draft, feeds, order.precision)
    if balanced:
        save_model(model, draft)
    _check(draft)
    try:
        parity, notes = _agreements(gm, draft, tests)
        captured = replace(captured, notes=captured.notes + notes)
        return _Written(captured, feeds, balanced, parity)
    except ExportError as error:
        if not captured.dynamic_batch:
            raise
        fixed = _compared(order, draft, False)  # raises where the batch is not what is wrong
        message = str(error).replace(str(draft), draft.name)
        obstacle = f"the exported file does not bear another: {brief(message)}"
        if dynamic_batch:
            raise ExportError(cannot_be_dynamic(obstacle)) from error
        return replace(
            fixed, captured=replace(fixed.captured, notes=(fixed_note(obstacle), *fixed.captured.notes))
        )


def _agreements(
    gm: GraphModule, draft: Path, tests: Sequence[tuple[Tensor, ...]]
) -> tuple[tuple[Agreement, ...], tuple[str, ...]]:
    """How well a file agrees, and a note where the network refuses what was drawn for it.

    Raises:
        ExportError: It does not agree, or PyTorch fails on inputs of other shapes.
    """
    try:
        return check_parity(gm, draft, tests), ()
    except ExportError:
        raise
    except Exception as error:  # noqa: BLE001 - a network's own code runs here and may raise anything
        refusal = brief(error)
    taken = []
    for inputs in tests:
        try:
            run_graph(gm, inputs)
            taken.append(inputs)
        except Exception as error:
            shapes = [tuple(value.shape) for value in inputs]
            if shapes != [tuple(value.shape) for value in tests[0]]:
                raise ExportError(f"PyTorch fails on inputs of shapes {shapes}: {brief(error)}") from error
    told = f"the network refuses inputs that are drawn like the example ({refusal})"
    return check_parity(gm, draft, taken), (f"{told}; it was compared on {len(taken)} of {len(tests)}",)


def save_model(model: Any, path: Path) -> None:
    """Write an `onnx_ir.Model` unchecked, its weights in a second file where one cannot hold them."""
    import onnx_ir

    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    external = f"{path.name}.data" if weights > EXTERNAL_DATA_BYTES else None
    onnx_ir.save(model, path, external_data=external)


def _check(path: Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"onnx.checker refuses the exported model: {error}") from error


def _publish(draft: Path, path: Path) -> None:
    """Move a checked file to its name; with external data, never so that an old model sees new weights.

    Raises:
        ExportError: The weights need a second file, and there is no folder beside a device or a pipe.
    """
    data = draft.with_name(f"{draft.name}.data")
    if data.exists():
        if path.exists() and not path.is_file():
            raise ExportError(f"{path} takes one file, and these weights need a second; name a file")
        target = Path(os.path.realpath(path))
        if target.name != path.name:
            raise ExportError(
                f"{path} is a link to {target.name}, and its weights need a second file; name that"
            )
        target.unlink(missing_ok=True)
        data.replace(target.with_name(data.name))
    publish(draft, path)


@contextmanager
def _on_disk(path: Path) -> Iterator[None]:
    """Say what a full disk or a folder that is gone means for the file."""
    try:
        yield
    except OSError as error:
        told = error.strerror or error
        raise ExportError(
            f"{path} cannot be written: {told}; what was there before is still there"
        ) from error
