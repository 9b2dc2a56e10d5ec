"""A report of ONNX files that were timed: what they say of their own making, beside their times."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fxdecomp.export.benchmark_report import BenchmarkReport
from fxdecomp.export.metadata import read_metadata
from fxdecomp.graphs.records import Record
from fxdecomp.reporting.evidence import Lowered, Variant, lowered_of
from fxdecomp.reporting.report import Report


def report_of_files(files: Mapping[str, Path], benchmark: BenchmarkReport, command: str = "") -> Report:
    """The times of some files, with the layers of the first of them that was decomposed.

    Args:
        files: The files by the names that they have in the benchmark.
        benchmark: Their times.
        command: The command that timed them.

    Raises:
        ExportError: A file is no ONNX model, or its record was altered.

    Example:
        >>> import tempfile, torch, fxdecomp
        >>> from pathlib import Path
        >>> gm = fxdecomp.trace(torch.nn.Sequential(torch.nn.Linear(64, 32)), torch.randn(1, 64))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "small.onnx"
        ...     _ = fxdecomp.export.to_onnx(gm, torch.randn(1, 64), path)
        ...     times = fxdecomp.export.benchmark({"small": path}, rounds=2)
        ...     report = fxdecomp.reporting.report_of_files({"small": path}, times)
        >>> [variant.name for variant in report.variants]
        ['small']
    """
    reports: dict[str, Report] = {}
    lowered: dict[str, Lowered] = {}
    for name, path in files.items():
        metadata = read_metadata(path)
        record = None if metadata is None else metadata.record
        reports[name] = Report(record or Record())
        if metadata is not None and metadata.quantization is not None:
            lowered[name] = lowered_of(path, metadata.quantization)
    variants = tuple(
        Variant(
            name,
            macs=one.macs_after if one.outcomes else None,
            params=one.params_after if one.outcomes else None,
            size_bytes=path.stat().st_size,
        )
        for (name, path), one in zip(files.items(), reports.values(), strict=True)
    )
    chosen = next((one.record for one in reports.values() if one.applied), Record())
    return Report(chosen, benchmark=benchmark, variants=variants, command=command, lowered=lowered)
