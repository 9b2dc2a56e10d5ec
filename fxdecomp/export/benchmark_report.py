"""`BenchmarkReport`: measured times as data, with their ratios and their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fxdecomp.errors import BenchmarkError
from fxdecomp.export.kernels import Kernel
from fxdecomp.export.notebook import html_table
from fxdecomp.export.ratios import Ratio, ratio_of_medians
from fxdecomp.export.saved_benchmarks import check_benchmark
from fxdecomp.files import read_json, write_json


@dataclass(frozen=True, slots=True)
class Timing:
    """One model on one provider with one number of threads and one batch size.

    Attributes:
        model: The name that the caller gave.
        provider: The execution provider.
        threads: Intra-op threads that were really used.
        batch: Batch size.
        rounds_s: Median time of one run in each round, in seconds; rounds of all models ran in turn.
        median_s: Median of all runs.
        p95_s: 95th percentile of all runs.
        first_run_s: The first run after loading.
        load_s: Loading and optimising the file.
        peak_bytes: What loading and one run add to the memory of a fresh process; None if it was not
            measured.
        nodes: How many nodes of the optimised graph each provider ran; empty where it was not profiled.
        problem: Why there are no times; empty where there are.

    Example:
        >>> from fxdecomp.export import Timing
        >>> Timing("small", "CUDAExecutionProvider", 1, 1, problem="not available").problem
        'not available'
    """

    model: str
    provider: str
    threads: int
    batch: int
    rounds_s: tuple[float, ...] = ()
    median_s: float = float("nan")
    p95_s: float = float("nan")
    first_run_s: float = float("nan")
    load_s: float = float("nan")
    peak_bytes: int | None = None
    nodes: Mapping[str, int] = field(default_factory=dict)
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON data, which has no NaN: times that are not there are None."""
        return {key: None if _is_nan(value) else value for key, value in asdict(self).items()}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Timing:
        """The inverse of `to_dict`."""
        given = {key: value for key, value in data.items() if value is not None}
        return Timing(**given | {"rounds_s": tuple(data["rounds_s"])})


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


@dataclass(frozen=True, slots=True)
class BenchmarkReport:
    """What `benchmark` measured.

    Attributes:
        timings: One row per model, provider, threads and batch, problems included.
        kernels: The kernel table of every model, in the first setting in which it ran.
        machine: Processor, cores and versions.
        settings: How it was measured.

    Example:
        >>> from fxdecomp.export import BenchmarkReport, Timing
        >>> times = {"dense": 4.0, "small": 2.0}
        >>> rows = [Timing(name, "CPUExecutionProvider", 1, 1, (s, s), s, s) for name, s in times.items()]
        >>> print(BenchmarkReport(tuple(rows)).ratio("dense", "small"))
        2.00x [2.00, 2.00]
    """

    timings: tuple[Timing, ...]
    kernels: Mapping[str, tuple[Kernel, ...]] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def median_s(self) -> dict[str, float]:
        """Median time of each model, in the first setting in which it ran."""
        medians: dict[str, float] = {}
        for row in self.timings:
            if not row.problem:
                medians.setdefault(row.model, row.median_s)
        return medians

    @property
    def problems(self) -> tuple[Timing, ...]:
        """The rows without times."""
        return tuple(row for row in self.timings if row.problem)

    def timing(
        self, model: str, *, provider: str | None = None, threads: int | None = None, batch: int | None = None
    ) -> Timing:
        """The first row with times that fits.

        Raises:
            BenchmarkError: If there is none; says why.
        """
        wanted = {"model": model, "provider": provider, "threads": threads, "batch": batch}
        rows = [
            row
            for row in self.timings
            if all(value is None or getattr(row, key) == value for key, value in wanted.items())
        ]
        for row in rows:
            if not row.problem:
                return row
        asked = ", ".join(f"{key} {value}" for key, value in wanted.items() if value is not None)
        why = rows[0].problem if rows else f"the report has {sorted({row.model for row in self.timings})}"
        raise BenchmarkError(f"no times for {asked}: {why}")

    def ratio(
        self,
        slow: str,
        fast: str,
        *,
        provider: str | None = None,
        threads: int | None = None,
        batch: int | None = None,
    ) -> Ratio:
        """How many times faster `fast` is than `slow`: median time of `slow` over that of `fast`.

        The interval is a bootstrap over rounds: both models keep their pairing, so that what slowed the
        machine during a round cancels.

        Args:
            slow: Name of the model in the numerator, commonly the dense one.
            fast: Name of the model in the denominator.
            provider: Take the rows of this provider; the first that ran, by default.
            threads: Take the rows of this number of threads.
            batch: Take the rows of this batch size.

        Raises:
            BenchmarkError: If one of them was not timed.
        """
        first = self.timing(slow, provider=provider, threads=threads, batch=batch)
        second = self.timing(fast, provider=first.provider, threads=first.threads, batch=first.batch)
        return ratio_of_medians(first.rounds_s, second.rounds_s)

    def kernel_table(self, model: str) -> str:
        """Where the time of a model goes, as text: one line per layer or stage, then one per kind.

        Raises:
            BenchmarkError: If the model was not profiled.
        """
        if model not in self.kernels:
            raise BenchmarkError(f"no kernel table of {model!r}; there are {sorted(self.kernels)}")
        rows = self.kernels[model]
        width = max(len(row.name) for row in rows)
        lines = [f"{'layer':<{width}}  {'kind':<9}       ms  share     MMACs  GFLOP/s"]
        kinds = dict.fromkeys(row.kind for row in rows)
        for kind in kinds:
            group = [row for row in rows if row.kind == kind]
            total = Kernel(
                "total",
                kind,
                sum(row.time_s for row in group),
                sum(row.share for row in group),
                sum(row.macs for row in group),
                "",
            )
            rows += (total,) if kind != "other" or len(group) > 1 else ()
        for row in rows:
            speed = f"{row.gflops:>8.1f}" if row.macs else ""
            macs = f"{row.macs / 1e6:>9.2f}" if row.macs else ""
            head = f"{row.name:<{width}}  {row.kind:<9} {row.time_s * 1e3:>8.3f} {row.share:>6.1%}"
            lines.append(f"{head} {macs} {speed}".rstrip())
        if not any(row.macs for row in self.kernels[model]):
            where = ", ".join(dict.fromkeys(row.provider for row in self.kernels[model]))
            lines.append(f"{where} gives no times of single layers")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON data."""
        return {
            "timings": [row.to_dict() for row in self.timings],
            "kernels": {name: [row.to_dict() for row in rows] for name, rows in self.kernels.items()},
            "machine": dict(self.machine),
            "settings": dict(self.settings),
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> BenchmarkReport:
        """The inverse of `to_dict`."""
        check_benchmark(data)
        return BenchmarkReport(
            timings=tuple(map(Timing.from_dict, data["timings"])),
            kernels={
                name: tuple(Kernel(**{k: v for k, v in row.items() if k != "gflops"}) for row in rows)
                for name, rows in data["kernels"].items()
            },
            machine=data["machine"],
            settings=data["settings"],
        )

    def save(self, path: Path | str) -> None:
        """Write the report as JSON, whole or not at all."""
        write_json(Path(path), self.to_dict())

    @staticmethod
    def load(path: Path | str) -> BenchmarkReport:
        """Read a report that `save` wrote.

        Raises:
            BenchmarkError: If the file is none.
        """
        try:
            return BenchmarkReport.from_dict(read_json(Path(path)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BenchmarkError(
                f"{path} holds no saved benchmark, as `bench --json` and `report.save` write them: {error!r}"
            ) from error

    def _repr_html_(self) -> str:
        head = ["model", "provider", "threads", "batch", "median ms", "p95 ms", "faster than first"]
        rows: list[list[str]] = []
        first: dict[tuple[str, int, int], Timing] = {}
        for row in self.timings:
            setting = (row.provider, row.threads, row.batch)
            cells = [row.model, *map(str, setting)]
            if row.problem:
                rows.append([*cells, "", "", row.problem])
                continue
            base = first.setdefault(setting, row)
            ratio = "" if base is row else str(ratio_of_medians(base.rounds_s, row.rounds_s))
            rows.append([*cells, f"{row.median_s * 1e3:.3f}", f"{row.p95_s * 1e3:.3f}", ratio])
        return html_table(head, rows)

    def __str__(self) -> str:
        width = max((len(row.model) for row in self.timings), default=5)
        memory = any(row.peak_bytes is not None for row in self.timings)
        peak = "  peak MB" if memory else ""
        lines = [
            f"{'model':<{width}}  {'provider':<25} threads batch  first ms median ms   p95 ms{peak}  "
            "faster than first"
        ]
        first: dict[tuple[str, int, int], str] = {}
        for row in self.timings:
            setting = (row.provider, row.threads, row.batch)
            head = f"{row.model:<{width}}  {row.provider:<25} {row.threads:>7} {row.batch:>5}"
            if row.problem:
                lines.append(f"{head}  {row.problem}")
                continue
            base = first.setdefault(setting, row.model)
            ratio = self.ratio(base, row.model, provider=setting[0], threads=setting[1], batch=setting[2])
            times = f"{row.first_run_s * 1e3:>9.3f} {row.median_s * 1e3:>9.3f} {row.p95_s * 1e3:>8.3f}"
            if memory:
                times += f" {row.peak_bytes / 1e6:>8.1f}" if row.peak_bytes is not None else " " * 9
            lines.append(f"{head} {times}  {ratio if base != row.model else ''}".rstrip())
        return "\n".join(lines)
