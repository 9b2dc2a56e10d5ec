"""The model in memory, with as many free axes as the graph allows, and the inputs that it is checked with.

A graph that was read from an ONNX file becomes that file again, its changed layers replaced; any other goes
through PyTorch's exporter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from fxdecomp.errors import ExportError
from fxdecomp.export.examples import resized, with_batch
from fxdecomp.export.exporter import export_graph
from fxdecomp.export.matching import NotSpliceable
from fxdecomp.export.parity import run_graph
from fxdecomp.export.splicing import Spliced, splice
from fxdecomp.graphs.drawing import drawn_like
from fxdecomp.graphs.inputs import has_batch
from fxdecomp.graphs.origins import Origin


@dataclass(frozen=True, slots=True)
class Captured:
    """An exported model.

    Attributes:
        model: An `onnx_ir.Model`.
        dynamic_batch: Whether the batch size is free.
        notes: What there is to say about it.
        spliced: The file that the graph was read from, where it is that file again.
        is_demanded: Whether a free batch was required.
    """

    model: Any
    dynamic_batch: bool
    notes: tuple[str, ...] = ()
    spliced: Spliced | None = None
    is_demanded: bool = False

    @property
    def opset(self) -> int:
        """The version of ONNX's default operator set."""
        found = (int(v) for domain, v in self.model.opset_imports.items() if domain in ("", "ai.onnx"))
        return next(found, 1)  # a file of other operators alone need not say it

    @property
    def inputs(self) -> tuple[Any, ...]:
        """The values that the file takes; older files list their weights among them."""
        return tuple(value for value in self.model.graph.inputs if not value.is_initializer())


def capture_file(
    gm: GraphModule,
    inputs: tuple[Tensor, ...],
    origin: Origin,
    *,
    dynamic_batch: bool | None,
    axes: Mapping[int, str],
    opset: int | None,
) -> Captured:
    """Put what was changed in a graph into the file that it was read from.

    Args:
        gm: The graph.
        inputs: The example inputs.
        origin: The file.
        dynamic_batch: True requires a free batch, None and False leave it as it is in the file.
        axes: Further axes that are to be free.
        opset: ONNX operator set, None for that of the file.

    Raises:
        NotSpliceable: The changes cannot be put in, or the file is not as it is asked for.
    """
    import onnx_ir

    spliced = splice(gm, origin)
    captured = Captured(onnx_ir.from_proto(spliced.proto), False, spliced=spliced)
    if opset not in (None, captured.opset):
        raise NotSpliceable(f"operator set {opset} was asked for, and the file is of {captured.opset}")
    shapes = [() if value.shape is None else tuple(value.shape) for value in captured.inputs]
    for axis in axes:
        if any(len(shape) > axis and isinstance(shape[axis], int) for shape in shapes):
            raise NotSpliceable(f"axis {axis} was asked to be free, and the file fixes it")
    batched = [shape for shape, has in zip(shapes, has_batch(inputs), strict=False) if has and shape]
    obstacle = "the file fixes it" if any(isinstance(shape[0], int) for shape in batched) else ""
    if not obstacle and dynamic_batch is not False:
        obstacle = _obstacle(gm, inputs)
    if dynamic_batch and obstacle:
        raise NotSpliceable(f"a free batch was asked for, and {obstacle}")
    notes = (fixed_note(obstacle),) if obstacle and dynamic_batch is None else ()
    return replace(captured, dynamic_batch=not obstacle and dynamic_batch is not False, notes=notes)


def capture(
    gm: GraphModule,
    inputs: tuple[Tensor, ...],
    *,
    dynamic_batch: bool | None,
    axes: Mapping[int, str],
    opset: int | None,
) -> Captured:
    """Export a graph, with a free batch if it can be.

    Args:
        gm: The graph.
        inputs: The example inputs.
        dynamic_batch: True requires a free batch, False fixes it, None frees it if the graph allows.
        axes: Further free axes and the names of their symbols.
        opset: ONNX operator set, None for the exporter's own choice.

    Raises:
        ExportError: If the graph does not run, the exporter refuses it, or the batch cannot be free but must.
    """
    try:
        run_graph(gm, inputs)
    except Exception as error:
        raise ExportError(f"PyTorch itself cannot run the graph on the example: {brief(error)}") from error
    obstacle = ""
    if dynamic_batch is not False:
        obstacle = _obstacle(gm, inputs)
        if not obstacle:
            try:
                return Captured(export_graph(gm, inputs, batch=True, axes=axes, opset=opset), True)
            except ExportError as error:
                obstacle = str(error)
    if dynamic_batch:
        raise ExportError(cannot_be_dynamic(obstacle))
    notes = (fixed_note(obstacle),) if obstacle else ()
    return Captured(export_graph(gm, inputs, batch=False, axes=axes, opset=opset), False, notes)


def _obstacle(gm: GraphModule, inputs: tuple[Tensor, ...]) -> str:
    """Why the batch cannot be dynamic: what PyTorch runs at one size only cannot be checked at another."""
    if not any(has_batch(inputs)):
        return "no input has an axis for it"
    for batch in _other_batches(inputs):
        try:
            run_graph(gm, with_batch(inputs, batch))
        except Exception as error:  # noqa: BLE001 - whatever the graph raises is the reason
            return f"PyTorch fails at batch {batch}: {brief(error)}"
    return ""


def _other_batches(inputs: tuple[Tensor, ...]) -> list[int]:
    """The batch sizes that a free batch is tried at."""
    own = _batch(inputs)
    return sorted({1, own + 1} - {own}, reverse=True)


def cannot_be_dynamic(obstacle: str) -> str:
    """The message where a free batch was required."""
    return f"the batch size cannot be dynamic: {obstacle}; pass dynamic_batch=False"


def fixed_note(obstacle: str) -> str:
    """The note where a free batch was not required."""
    return f"the batch size is fixed to the example's: {obstacle}"


def brief(error: object) -> str:
    """The beginning of what an error says."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def check_inputs(
    inputs: tuple[Tensor, ...], dynamic: bool, axes: tuple[int, ...], seed: int
) -> list[tuple[Tensor, ...]]:
    """The example, two random inputs like it, and others along every free axis."""
    tests = [inputs, drawn_like(inputs, seed), drawn_like(inputs, seed + 1)]
    if dynamic:
        batches = enumerate(sorted(_other_batches(inputs)))
        tests += [drawn_like(with_batch(inputs, batch), seed + 2 + i) for i, batch in batches]
    if axes:
        # A quarter longer, in whole multiples of 32 where the example is one: strides must still divide it.
        lengths = {axis: max(value.shape[axis] for value in inputs if value.ndim > axis) for axis in axes}
        step = {axis: 32 if length % 32 == 0 else 1 for axis, length in lengths.items()}
        longer = {axis: n + max(step[axis], n // 4 // step[axis] * step[axis]) for axis, n in lengths.items()}
        tests.append(drawn_like(resized(inputs, longer), seed + 10))
    return tests


def _batch(inputs: tuple[Tensor, ...]) -> int:
    return next(value.shape[0] for value, batched in zip(inputs, has_batch(inputs), strict=True) if batched)


def axis_name(axis: int, inputs: tuple[Tensor, ...]) -> str:
    """The name of the symbol of a free axis.

    Raises:
        ExportError: If no input has the axis, or it is the batch.
    """
    ndim = max(value.ndim for value in inputs)
    if not 1 <= axis < ndim:
        raise ExportError(f"dynamic axis {axis}: the inputs have axes 1 to {ndim - 1} besides the batch")
    return {2: "height", 3: "width"}.get(axis, f"axis_{axis}") if ndim == 4 else f"axis_{axis}"
