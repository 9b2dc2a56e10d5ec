"""`to_onnx`: a graph into an ONNX file that is checked before it gets its name.

Everything happens in a temporary folder beside the target; the finished file is moved in one step. A process
that dies on the way, or a check that fails, leaves what was there before.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch.fx import GraphModule

from fxdecomp.calibration import Batch, Calibration
from fxdecomp.errors import ExportError
from fxdecomp.export.capturing import axis_name
from fxdecomp.export.drafting import Order, check_written, written_draft
from fxdecomp.export.examples import as_inputs, other_outputs
from fxdecomp.export.export_report import ExportReport
from fxdecomp.export.fp16 import Fp16
from fxdecomp.export.int8 import Int8
from fxdecomp.export.lowering import Precision, chosen_precision, lower
from fxdecomp.export.metadata import describe_quantization
from fxdecomp.export.readying import make_ready
from fxdecomp.export.sessions import onnxruntime
from fxdecomp.files import OutputError, beside, check_file, publish
from fxdecomp.graphs.inputs import ExampleInputs, require_graph
from fxdecomp.graphs.records import Record, record_of
from fxdecomp.graphs.untouched import one_at_a_time
from fxdecomp.progress import Progress, silent


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
    require_graph(gm, "to_onnx")
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
    order = Order(
        gm,
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
        written = written_draft(order, draft, dynamic_batch)
        if precision is not None:
            exact, draft = draft, folder / "lower" / path.name
            draft.parent.mkdir()
            feeds, balanced = written.feeds, written.balanced
            if written.captured.spliced is not None:
                make_ready(exact)
            quantization = lower(exact, draft, feeds, precision, balanced=balanced, progress=progress)
            describe_quantization(draft, quantization)
            check_written(draft)
        size = sum(file.stat().st_size for file in draft.parent.iterdir() if file.is_file())
        _publish(draft, path)
    captured = written.captured
    return ExportReport(
        path=path,
        size_bytes=size,
        opset=captured.opset,
        inputs=tuple(value.name for value in captured.inputs),
        outputs=tuple(value.name for value in captured.model.graph.outputs),
        dynamic_batch=captured.dynamic_batch,
        dynamic_axes=tuple(axes),
        parity=written.parity,
        quantization=quantization,
        notes=captured.notes + _told_of_others(gm),
    )


def _told_of_others(gm: GraphModule) -> tuple[str, ...]:
    others = other_outputs(gm)
    return (f"outputs that are no tensors are not in the file: {', '.join(others)}",) if others else ()


def _record_of(gm: GraphModule, precision: Int8 | Fp16 | None) -> Record | None:
    """What the file says of its making; a lowered file has not the graph's distance to the original."""
    record = record_of(gm)
    return record if record is None or precision is None else replace(record, quality=None)


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
        reason = error.strerror or error
        raise ExportError(
            f"{path} cannot be written: {reason}; what was there before is still there"
        ) from error
