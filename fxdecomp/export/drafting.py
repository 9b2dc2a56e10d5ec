"""A draft of the file: written in full precision and compared with the graph, before it gets its name.

A graph that was read from an ONNX file becomes that file again; where it cannot, or is no such graph, it goes
through PyTorch's exporter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from fxdecomp.errors import ExportError
from fxdecomp.export.agreement import Agreement
from fxdecomp.export.capturing import (
    Captured,
    brief,
    cannot_be_dynamic,
    capture,
    capture_file,
    check_inputs,
    fixed_note,
)
from fxdecomp.export.examples import flat_graph
from fxdecomp.export.fp16 import Fp16
from fxdecomp.export.int8 import Int8
from fxdecomp.export.lowering import balance_model, fitting_batches
from fxdecomp.export.matching import NotSpliceable
from fxdecomp.export.metadata import metadata_props
from fxdecomp.export.naming import name_ends
from fxdecomp.export.parity import check_parity, run_graph, to_numpy
from fxdecomp.export.running import Feed
from fxdecomp.export.sessions import open_session
from fxdecomp.export.splicing import Spliced
from fxdecomp.export.tensor_runs import run_on_tensors
from fxdecomp.graphs.origins import origin_of
from fxdecomp.graphs.records import Record
from fxdecomp.sites.opaque import Opaque

EXTERNAL_DATA_BYTES = 1_800_000_000
"""Models with more weights than this keep them in a second file: an ONNX file ends at 2 GiB."""


@dataclass(frozen=True, slots=True, eq=False)
class Order:
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
class Written:
    """A file that computes what the graph computes, and what may be quantised with."""

    captured: Captured
    feeds: Sequence[Feed]
    balanced: int
    parity: tuple[Agreement, ...]


def written_draft(order: Order, draft: Path, dynamic_batch: bool | None) -> Written:
    """Write the file that a graph was read from, or where there is none or it cannot be, through PyTorch."""
    origin = origin_of(order.gm)
    if origin is None:
        return _compared(order, _captured(order, dynamic_batch), draft)
    options: Any = {"axes": order.axes, "opset": order.opset}
    try:
        captured = capture_file(order.gm, order.inputs, origin, dynamic_batch=dynamic_batch, **options)
        ends = [(captured.inputs, order.input_names), (captured.model.graph.outputs, order.output_names)]
        if any(names is not None and [v.name for v in values] != list(names) for values, names in ends):
            raise NotSpliceable("other names were asked for than those of the file's inputs and outputs")
        return _compared(order, captured, draft)
    except (NotSpliceable, ExportError) as error:
        refused = f"the file that the graph was read from was not used: {brief(error)}"
        opaque = [module.contents for module in order.gm.modules() if isinstance(module, Opaque)]
        if opaque:
            raise ExportError(
                f"{refused}; nor can PyTorch export the graph: it holds {'; '.join(opaque)} of that file"
            ) from error
    try:
        exported = _captured(order, dynamic_batch)
    except ExportError as error:
        raise ExportError(f"{error}; {refused}") from error
    return _compared(order, replace(exported, notes=(*exported.notes, refused)), draft)


def _captured(order: Order, dynamic_batch: bool | None) -> Captured:
    """The graph through PyTorch's exporter."""
    gm = flat_graph(order.gm)
    captured = capture(gm, order.inputs, dynamic_batch=dynamic_batch, axes=order.axes, opset=order.opset)
    name_ends(captured.model, order.input_names or order.placeholders, order.output_names)
    return replace(captured, is_demanded=bool(dynamic_batch))


def _compared(order: Order, captured: Captured, draft: Path) -> Written:
    """Write a file in full precision and compare it; with a fixed batch if it does not bear a free one."""
    gm, inputs, model = flat_graph(order.gm), order.inputs, captured.model
    names = tuple(value.name for value in captured.inputs)
    example = dict(zip(names, inputs, strict=True))
    props = metadata_props(order.record, example, captured.opset)
    tests = check_inputs(inputs, captured.dynamic_batch, tuple(order.axes), order.seed)
    batches, skipped = fitting_batches(model, names, order.batches)
    captured = replace(captured, notes=captured.notes + skipped)
    given = batches or tests[:3] if order.precision is not None else []
    feeds = [dict(zip(names, map(to_numpy, values[: len(names)]), strict=True)) for values in given]
    _save(captured, draft, props)
    balanced = balance_model(model, draft, feeds, order.precision)
    if balanced:
        _save(replace(captured, spliced=None), draft, props)
    check_written(draft, captured.spliced)
    try:
        left_out: tuple[str, ...] = ()
        if captured.spliced is not None:
            tests, left_out = _taken(draft, tests)
        parity, notes = _agreements(gm, draft, tests)
        captured = replace(captured, notes=captured.notes + left_out + notes)
        return Written(captured, feeds, balanced, parity)
    except ExportError as error:
        if not captured.dynamic_batch:
            raise
        fixed = _compared(
            order, _with_fixed_batch(order, captured), draft
        )  # raises where it is not the batch
        message = str(error).replace(str(draft), draft.name)
        obstacle = f"the exported file does not bear another: {brief(message)}"
        if captured.is_demanded:
            raise ExportError(cannot_be_dynamic(obstacle)) from error
        return replace(
            fixed, captured=replace(fixed.captured, notes=(fixed_note(obstacle), *fixed.captured.notes))
        )


def _with_fixed_batch(order: Order, captured: Captured) -> Captured:
    """The same for the example's batch; a file that was read stays what it is."""
    if captured.spliced is None:
        return replace(_captured(order, False), notes=captured.notes)
    return replace(captured, dynamic_batch=False)


def _taken(draft: Path, tests: Sequence[tuple[Any, ...]]) -> tuple[list[tuple[Any, ...]], tuple[str, ...]]:
    """Those inputs that a file of others takes: what is drawn like its example need not be what it takes.

    Inputs of other shapes stay: whether it takes them is what is to be found out.
    """
    try:
        session = open_session(draft, threads=0)
    except Exception as error:
        raise ExportError(f"ONNX Runtime cannot load {draft}: {brief(error)}") from error
    shapes = [[getattr(value, "shape", None) for value in values] for values in tests]
    kept = [
        values
        for index, values in enumerate(tests)
        if not index or shapes[index] != shapes[0] or _takes(session, values)
    ]
    note = (
        f"the file refuses inputs that are drawn like the example; {len(kept)} of {len(tests)} were compared"
    )
    return kept, (note,) if len(kept) < len(tests) else ()


def _takes(session: Any, values: Sequence[Any]) -> bool:
    try:
        run_on_tensors(session, values)
    except Exception:  # noqa: BLE001 - whatever it raises
        return False
    return True


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
    why = f"the network refuses inputs that are drawn like the example ({refusal})"
    return check_parity(gm, draft, taken), (f"{why}; it was compared on {len(taken)} of {len(tests)}",)


def _save(captured: Captured, path: Path, props: Mapping[str, str]) -> None:
    if captured.spliced is not None:
        captured.spliced.save(path, props)
        return
    captured.model.metadata_props.update(props)
    save_model(captured.model, path)


def save_model(model: Any, path: Path) -> None:
    """Write an `onnx_ir.Model` unchecked, its weights in a second file where one cannot hold them."""
    import onnx_ir

    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    external = f"{path.name}.data" if weights > EXTERNAL_DATA_BYTES else None
    onnx_ir.save(model, path, external_data=external)


def check_written(path: Path, spliced: Spliced | None = None) -> None:
    """Raise where onnx refuses a file; one that was read is judged by ONNX Runtime alone, as it was then."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=spliced is None)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        if spliced is None:
            raise ExportError(f"onnx.checker refuses the exported model: {error}") from error
