"""`ExportReport`: what `to_onnx` wrote, and how well the file computes what the graph computes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fxdecomp.export.agreement import Agreement
from fxdecomp.export.quantization import Quantization


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written.

    Attributes:
        path: The file.
        size_bytes: Its size on the disk, external data included.
        opset: Version of ONNX's default operator set.
        inputs: Names of the inputs.
        outputs: Names of the outputs.
        dynamic_batch: Whether the batch size is free.
        dynamic_axes: Further axes whose length is free.
        parity: One row per output, checked input and optimisation level.
        quantization: What was lowered to int8 or fp16, and at what price; None for a file in full precision.
            The comparison is that of the model before.
        notes: Sentences for the reader.

    Example:
        >>> import tempfile, torch, fxdecomp
        >>> from pathlib import Path
        >>> gm = fxdecomp.trace(torch.nn.Sequential(torch.nn.Linear(64, 32)), torch.randn(1, 64))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "small.onnx"
        ...     written = fxdecomp.export.to_onnx(gm, torch.randn(1, 64), path)
        >>> written.max_relative < 1e-4
        True
    """

    path: Path
    size_bytes: int
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic_batch: bool
    dynamic_axes: tuple[int, ...]
    parity: tuple[Agreement, ...]
    quantization: Quantization | None = None
    notes: tuple[str, ...] = ()

    @property
    def max_relative(self) -> float:
        """The largest relative difference from PyTorch, over all checks."""
        return max((row.max_relative for row in self.parity), default=0.0)

    @property
    def _parity(self) -> str:
        """What was compared: the file with the graph that it was made from, not with the original."""
        found = f"to {self.max_relative:.1e} in {len(self.parity)} checks"
        if self.quantization is None:
            return f"the file computes what the graph computes, {found}"
        return f"before it was lowered the file computed what the graph computes, {found}"

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON data."""
        return asdict(self) | {"path": str(self.path)}

    def __str__(self) -> str:
        batch = "any batch" if self.dynamic_batch else "fixed batch"
        lines = [
            f"{self.path}: {self.size_bytes / 1e6:.2f} MB, opset {self.opset}, {batch}, "
            f"{', '.join(self.inputs)} -> {', '.join(self.outputs)}; {self._parity}"
        ]
        if self.quantization is not None:
            lines.append(str(self.quantization))
        return "\n".join(lines + [f"note: {note}" for note in self.notes])
