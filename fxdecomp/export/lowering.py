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
