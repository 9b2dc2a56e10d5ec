"""What becomes of a model in lower precision, and the choice of the stages that had better stay in fp32.

When the error at the output is too high with every stage in low precision, each stage is tried alone, and
those that do most harm stay in fp32. Errors of single stages add up nearly as squares, which tells how many
it takes; the result is measured again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fxdecomp.errors import ExportError
from fxdecomp.export.running import Feed
from fxdecomp.progress import Progress


@dataclass(frozen=True, slots=True)
class Quantization:
    """What was quantised, and at what price.

    Attributes:
        kind: `int8` or `fp16`.
        error: `||y' - y|| / ||y - mean(y)||` of the outputs of the written file, on inputs that no range was
            taken from wherever there were several batches.
        kept: Stages that stay in fp32, the most harmful first.
        alone: The error that each stage causes when it alone is quantised; empty where that was not needed.
        weight_bits: Bits of the weights.
        balanced: Number of pairs of stages whose scales were balanced.

    Example:
        >>> from fxdecomp.export import Quantization
        >>> print(Quantization("int8", 0.02, kept=("stem.0",)))
        int8 with 8-bit weights: relative error of the output 0.0200; in fp32 stay stem.0
    """

    kind: str
    error: float
    kept: tuple[str, ...] = ()
    alone: tuple[tuple[str, float], ...] = ()
    weight_bits: int = 8
    balanced: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON data."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Quantization:
        """The inverse of `to_dict`, also after a way through JSON."""
        pairs = tuple((str(name), float(error)) for name, error in data["alone"])
        return Quantization(**{**data, "kept": tuple(data["kept"]), "alone": pairs})

    def __str__(self) -> str:
        kept = f"; in fp32 stay {', '.join(self.kept)}" if self.kept else ""
        bits = f" with {self.weight_bits}-bit weights" if self.kind == "int8" else ""
        return f"{self.kind}{bits}: relative error of the output {self.error:.4f}{kept}"


def lower_precision(
    kind: str,
    stages: Sequence[str],
    error_of: Callable[[Sequence[str]], float],
    allowed: float,
    progress: Progress,
) -> Quantization:
    """Find the stages that stay in fp32, as few as it takes.

    Args:
        kind: Name of the precision.
        stages: Every stage that could be in low precision.
        error_of: Writes the model with the given stages in low precision and measures its error; what it
            wrote last is the result.
        allowed: The largest error.
        progress: Told of every stage that is tried alone.

    Raises:
        ExportError: If not a single stage can be.
    """
    full = error_of(stages)
    if full <= allowed:
        return Quantization(kind, full)
    alone = {}
    for index, stage in enumerate(stages):
        alone[stage] = error_of([stage])
        progress(f"trying stages alone in {kind}", index + 1, len(stages))
    order = sorted(stages, key=lambda stage: -alone[stage])
    count = _enough_to_keep([alone[stage] for stage in order], full, allowed)
    while count < len(stages):
        error = error_of(order[count:])
        if error <= allowed:
            return Quantization(kind, error, tuple(order[:count]), tuple(alone.items()))
        count += max(1, count // 4)
    raise ExportError(
        f"{kind} costs an error of {full:.3g} at the output, and no stage bears it within "
        f"max_error={allowed:g}; raise it, give more calibration, or export without quantize"
    )


def split_batches(feeds: Sequence[Feed]) -> tuple[Sequence[Feed], Sequence[Feed]]:
    """Batches for the ranges, and the last quarter to measure by; one batch must do for both."""
    cut = len(feeds) - max(1, len(feeds) // 4)
    return (feeds[:cut], feeds[cut:]) if cut else (feeds, feeds)


def _enough_to_keep(errors: Sequence[float], full: float, allowed: float) -> int:
    """How many of the worst to keep in fp32, if errors add as squares; `full` is the error of all."""
    squares = [error**2 for error in errors]
    total = sum(squares) or 1.0
    return next(
        (
            count
            for count in range(1, len(squares))
            if full * math.sqrt(sum(squares[count:]) / total) <= allowed
        ),
        len(squares) - 1,
    )
