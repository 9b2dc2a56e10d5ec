"""What goes into a run, and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from fxdecomp.export import ExportReport
from fxdecomp.export.lowering import Precision
from fxdecomp.graphs.inputs import ExampleInputs
from fxdecomp.reporting import Report
from fxdecomp.searching import Metric
from fxdecomp.searching.judgements import Judgement
from fxdecomp.searching.trials import SearchResult


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A model, the inputs to trace it with, and what it was called by.

    Attributes:
        model: The model.
        example_inputs: Its example inputs.
        name: What it was called by.
        input_names: Names of its inputs where it came from a file that has names for them, else None.
        output_names: Likewise.
    """

    model: nn.Module | ExportedProgram
    example_inputs: ExampleInputs
    name: str = "a network"
    input_names: tuple[str, ...] | None = None
    output_names: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Goal:
    """What a search is to reach; the attributes are those of `fxdecomp.search`."""

    max_drop: float
    metric: Metric | None = None
    provider: str | None = None
    threads: int = 1
    evaluations: int = 6
    provider_options: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class FileOptions:
    """How the files are written; the attributes are those of `to_onnx`."""

    quantize: Precision | None = None
    opset: int | None = None
    dynamic_axes: tuple[int, ...] = ()
    output_names: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class CompressResult:
    """What was written, and what became of each layer; `quantised` only where it was asked for."""

    report: Report
    exported: ExportReport
    search: SearchResult | None = None
    quantised: ExportReport | None = None
    judged: Mapping[str, Judgement] = field(default_factory=dict)
    files: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON data."""
        timed, verdict = self.report.benchmark, self.report.verdict
        return {
            "verdict": None if verdict is None else verdict.to_dict(),
            "files": list(self.files),
            "report": self.report.to_dict(),
            "export": self.exported.to_dict(),
            "quantised": None if self.quantised is None else self.quantised.to_dict(),
            "timings": None if timed is None else timed.to_dict(),
            "search": None if self.search is None else self.search.to_dict(),
            "judged": {name: each.to_dict() for name, each in self.judged.items()},
        }

    def moved_to(self, folder: Path) -> CompressResult:
        """The result with its files in their last place."""
        exports = [None if made is None else _moved(made, folder) for made in (self.exported, self.quantised)]
        assert exports[0] is not None
        return CompressResult(self.report, exports[0], self.search, exports[1], self.judged, self.files)


def _moved(made: ExportReport, folder: Path) -> ExportReport:
    from dataclasses import replace

    return replace(made, path=folder / made.path.name)
