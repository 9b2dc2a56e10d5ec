"""`to_onnx`: a graph into an ONNX file that is checked before it gets its name.

Everything happens in a temporary folder beside the target; the finished file is moved in one step. A process
that dies on the way, or a check that fails, leaves what was there before.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from fxdecomp.errors import ExportError
from fxdecomp.export.examples import as_inputs, drawn_like, has_batch, resized, with_batch
from fxdecomp.export.export_report import ExportReport
from fxdecomp.export.exporter import export_graph
from fxdecomp.export.metadata import metadata_props
from fxdecomp.export.parity import check_parity, run_graph
from fxdecomp.export.sessions import onnxruntime
from fxdecomp.records import record_of

EXTERNAL_DATA_BYTES = 1_800_000_000
"""Models with more weights than this keep them in a second file: an ONNX file ends at 2 GiB."""


def to_onnx(
    gm: GraphModule,
    example_inputs: Tensor | Sequence[Tensor],
    path: Path | str,
    *,
    dynamic_batch: bool | None = None,
    dynamic_axes: Sequence[int] = (),
    opset: int | None = None,
    seed: int = 0,
) -> ExportReport:
    """Write a graph as an ONNX file, checked by onnx and compared with PyTorch through ONNX Runtime.

    Nodes and initialisers carry the names of their sites and stages, and the file carries the record of the
    transformation (see `read_metadata`). The comparison takes the example and seeded random inputs like it,
    at the example's batch size and, when the batch is dynamic, at others.

    Args:
        gm: The graph; exported in evaluation mode and left as it is.
        example_inputs: A tensor, or one tensor per input.
        path: The file to write; its folder must exist. Weights above 1.8 GB go to `<path>.data` beside it.
        dynamic_batch: True requires that the file takes any batch size, False fixes the example's. By default
            it is dynamic wherever the graph allows it, and the report says where it does not.
        dynamic_axes: Further axes of the inputs whose length is free, such as `(2, 3)` for images.
        opset: ONNX operator set, None for the exporter's own choice.
        seed: Seed of the random inputs.

    Returns:
        What was written and how well it agrees.

    Raises:
        ParityError: If the file computes something else.
        ExportError: If the graph cannot be exported, the check refuses the model, or onnxruntime is missing.
    """
    onnxruntime()
    path = Path(path)
    if not path.parent.is_dir():
        raise ExportError(f"{path}: the folder {path.parent} does not exist; create it first")
    names, inputs = as_inputs(gm, example_inputs)
    axes = {axis: _axis_name(axis, inputs) for axis in dynamic_axes}
    model, dynamic, notes = _export(gm, inputs, dynamic_batch, axes, opset)
    version = int(model.opset_imports[""])
    model.metadata_props.update(metadata_props(record_of(gm), dict(zip(names, inputs, strict=True)), version))
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        draft = Path(folder) / path.name
        _save(model, draft)
        _check(draft)
        parity = check_parity(gm, draft, _test_inputs(inputs, dynamic, tuple(axes), seed))
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        _publish(draft, path)
    return ExportReport(
        path=path,
        size_bytes=size,
        opset=version,
        inputs=tuple(value.name for value in model.graph.inputs),
        outputs=tuple(value.name for value in model.graph.outputs),
        dynamic_batch=dynamic,
        dynamic_axes=tuple(axes),
        parity=parity,
        notes=notes,
    )


def _export(
    gm: GraphModule,
    inputs: tuple[Tensor, ...],
    dynamic_batch: bool | None,
    axes: dict[int, str],
    opset: int | None,
) -> tuple[Any, bool, tuple[str, ...]]:
    """The model, whether its batch is dynamic, and what there is to say about it."""
    try:
        run_graph(gm, inputs)
    except Exception as error:
        raise ExportError(f"PyTorch itself cannot run the graph on the example: {_brief(error)}") from error
    obstacle = ""
    if dynamic_batch is not False:
        obstacle = _obstacle(gm, inputs)
        if not obstacle:
            try:
                return export_graph(gm, inputs, batch=True, axes=axes, opset=opset), True, ()
            except ExportError as error:
                obstacle = str(error)
    if dynamic_batch:
        raise ExportError(f"the batch size cannot be dynamic: {obstacle}; pass dynamic_batch=False")
    notes = (f"the batch size is fixed to the example's: {obstacle}",) if obstacle else ()
    return export_graph(gm, inputs, batch=False, axes=axes, opset=opset), False, notes


def _obstacle(gm: GraphModule, inputs: tuple[Tensor, ...]) -> str:
    """Why the batch cannot be dynamic: what PyTorch runs at one size only cannot be checked at another."""
    if not any(has_batch(inputs)):
        return "no input has an axis for it"
    batch = _batch(inputs) + 1
    try:
        run_graph(gm, with_batch(inputs, batch))
    except Exception as error:  # noqa: BLE001 - whatever the graph raises is the reason
        return f"PyTorch fails at batch {batch}: {_brief(error)}"
    return ""


def _brief(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def _test_inputs(
    inputs: tuple[Tensor, ...], dynamic: bool, axes: tuple[int, ...], seed: int
) -> list[tuple[Tensor, ...]]:
    """The example, two random inputs like it, and others along every free axis."""
    tests = [inputs, drawn_like(inputs, seed), drawn_like(inputs, seed + 1)]
    if dynamic:
        batches = sorted({1, _batch(inputs) + 1} - {_batch(inputs)})
        tests += [drawn_like(with_batch(inputs, batch), seed + 2 + i) for i, batch in enumerate(batches)]
    if axes:
        # A quarter longer, in whole multiples of 32 where the example is one: strides must still divide it.
        lengths = {axis: max(value.shape[axis] for value in inputs if value.ndim > axis) for axis in axes}
        step = {axis: 32 if length % 32 == 0 else 1 for axis, length in lengths.items()}
        longer = {axis: n + max(step[axis], n // 4 // step[axis] * step[axis]) for axis, n in lengths.items()}
        tests.append(drawn_like(resized(inputs, longer), seed + 10))
    return tests


def _batch(inputs: tuple[Tensor, ...]) -> int:
    return next(value.shape[0] for value, batched in zip(inputs, has_batch(inputs), strict=True) if batched)


def _axis_name(axis: int, inputs: tuple[Tensor, ...]) -> str:
    ndim = max(value.ndim for value in inputs)
    if not 1 <= axis < ndim:
        raise ExportError(f"dynamic axis {axis}: the inputs have axes 1 to {ndim - 1} besides the batch")
    return {2: "height", 3: "width"}.get(axis, f"axis_{axis}") if ndim == 4 else f"axis_{axis}"


def _save(model: Any, path: Path) -> None:
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
    """Move a checked file to its name; with external data, never so that an old model sees new weights."""
    data = draft.with_name(f"{draft.name}.data")
    if data.exists():
        path.unlink(missing_ok=True)
        data.replace(path.with_name(data.name))
    draft.replace(path)
