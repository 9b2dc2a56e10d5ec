"""Lower precisions by name: which there are, what they need, and who makes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from fxdecomp.errors import ExportError
from fxdecomp.export.balancing import balance, linear_pairs
from fxdecomp.export.fp16 import Fp16, write_fp16
from fxdecomp.export.int8 import Int8, quantize_int8
from fxdecomp.export.quantization import Quantization
from fxdecomp.export.running import Feed, largest_by_channel
from fxdecomp.progress import Progress

Precision: TypeAlias = Literal["int8", "fp16"] | Int8 | Fp16


def chosen_precision(quantize: Precision | None, *, calibrated: bool) -> Int8 | Fp16 | None:
    """The options behind what a caller asks for.

    Raises:
        ExportError: If there is no such precision, or it needs calibration and there is none.
    """
    if quantize is None:
        return None
    named: dict[Any, Int8 | Fp16] = {"int8": Int8(), "fp16": Fp16()}
    precision = named.get(quantize, quantize) if isinstance(quantize, str) else quantize
    if not isinstance(precision, Int8 | Fp16):
        raise ExportError(f"quantize is {quantize!r}; wanted 'int8', 'fp16', Int8(...) or Fp16(...)")
    if isinstance(precision, Int8) and not calibrated:
        raise ExportError(
            "int8 needs the ranges of the activations; give calibration=, some batches of inputs"
        )
    return precision


def write_lowered(model: Any, folder: Path, precision: str, feed: Feed) -> Path:
    """Write a small network for timing alone, in a type by its name, whatever that does to its outputs.

    Args:
        model: An ONNX model in float32.
        folder: Where to.
        precision: float32, float16 or int8.
        feed: Its inputs.
    """
    import onnx

    path, lower = folder / "float32.onnx", folder / f"{precision}.onnx"
    onnx.save(model, str(path))
    if precision == "int8":
        quantize_int8(path, lower, [feed], Int8(max_error=float("inf")))
    elif precision == "float16":
        write_fp16(path, lower, [feed], Fp16(max_error=float("inf")))
    return lower


def fitting_batches(
    model: Any, names: Sequence[str], batches: Sequence[Sequence[Any]]
) -> tuple[list[Sequence[Any]], tuple[str, ...]]:
    """The calibration batches whose sizes the file takes, and a note about the others.

    A `DataLoader` gives a smaller last batch, which a file of a fixed batch does not take.

    Args:
        model: An `onnx_ir.Model`.
        names: Names of its inputs.
        batches: Values of the inputs, in order.

    Raises:
        ExportError: There are batches and none of them fits; names batch and axis.
    """
    declared = {
        value.name: None if value.shape is None else [_length(size) for size in value.shape]
        for value in model.graph.inputs
    }
    fitting, misfits = [], []
    for index, values in enumerate(batches):
        why = next(filter(None, map(_misfit, names, values, (declared[name] for name in names))), "")
        if why:
            misfits.append(f"calibration batch {index}: {why}")
        else:
            fitting.append(values)
    if batches and not fitting:
        raise ExportError(f"{misfits[0]}, as in every other batch; give batches of the file's own sizes")
    note = (
        f"{len(misfits)} of {len(batches)} calibration batches were left out; {misfits[0]}" if misfits else ""
    )
    return fitting, (note,) if note else ()


def _length(size: Any) -> int | None:
    """The length of an axis, None for a free one."""
    return size if isinstance(size, int) else None


def _misfit(name: str, value: Any, declared: Sequence[int | None] | None) -> str:
    """Why a value does not fit an input; empty where it does."""
    if declared is None:
        return ""
    if len(value.shape) != len(declared):
        return f"input {name!r} has shape {tuple(value.shape)}, the file takes {len(declared)} axes"
    for axis, (size, fixed) in enumerate(zip(value.shape, declared, strict=True)):
        if fixed is not None and size != fixed:
            return f"input {name!r} has {size} at axis {axis}, where the file is fixed to {fixed}"
    return ""


def balance_model(model: Any, path: Path, feeds: Sequence[Feed], precision: Int8 | Fp16 | None) -> int:
    """Balance the scales of a model that is to be quantised, in place.

    Args:
        model: An `onnx_ir.Model`.
        path: The same model on the disk, to be run.
        feeds: Calibration batches.
        precision: Only int8 with `balance` asks for it.

    Returns:
        The number of pairs of stages that were balanced.
    """
    if not isinstance(precision, Int8) or not precision.balance:
        return 0
    pairs = linear_pairs(model)
    balance(pairs, largest_by_channel(path, {pair.value: pair.channel_axis for pair in pairs}, feeds))
    return len(pairs)


def lower(
    source: Path,
    target: Path,
    feeds: Sequence[Feed],
    precision: Int8 | Fp16,
    *,
    balanced: int,
    progress: Progress,
) -> Quantization:
    """Write a file in lower precision; see `quantize_int8` and `write_fp16`."""
    if isinstance(precision, Int8):
        return replace(quantize_int8(source, target, feeds, precision, progress=progress), balanced=balanced)
    return write_fp16(source, target, feeds, precision, progress=progress)
