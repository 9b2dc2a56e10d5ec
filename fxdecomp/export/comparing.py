"""Two saved benchmarks side by side: what became faster or slower, and whether the machines were the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fxdecomp.errors import BenchmarkError
from fxdecomp.export.benchmark_report import BenchmarkReport, Timing
from fxdecomp.export.ratios import Ratio, ratio_of_medians


@dataclass(frozen=True, slots=True)
class ComparedTiming:
    """One model in one setting, in both reports.

    Attributes:
        model: Its name.
        provider: The execution provider.
        threads: Intra-op threads.
        batch: Batch size.
        before_s: Median time of the first report.
        after_s: Median time of the second.
        speedup: How many times faster the second is; its interval is wider than that of a ratio within one
            report, since nothing cancels between two runs.
    """

    model: str
    provider: str
    threads: int
    batch: int
    before_s: float
    after_s: float
    speedup: Ratio


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two benchmarks compared.

    Attributes:
        rows: What both of them timed.
        only_before: What only the first timed, in words.
        only_after: What only the second timed.
        differences: Entries of machine and settings that differ: name -> (first, second).

    Example:
        >>> from fxdecomp.export import BenchmarkReport, Timing, compare
        >>> rows = [Timing("small", "CPUExecutionProvider", 1, 1, (s, s), s, s) for s in (3.0, 2.0)]
        >>> old, new = (BenchmarkReport((row,)) for row in rows)
        >>> compare(old, new).rows[0].speedup.value
        1.5
    """

    rows: tuple[ComparedTiming, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    differences: Mapping[str, tuple[Any, Any]]

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON data."""
        return asdict(self)

    def __str__(self) -> str:
        width = max((len(row.model) for row in self.rows), default=5)
        lines = [f"{'model':<{width}}  {'provider':<25} threads batch  before ms  after ms  speed-up"]
        lines += [
            f"{row.model:<{width}}  {row.provider:<25} {row.threads:>7} {row.batch:>5}  "
            f"{row.before_s * 1e3:>9.3f} {row.after_s * 1e3:>9.3f}  {row.speedup}"
            for row in self.rows
        ]
        lines += [f"only before: {item}" for item in self.only_before]
        lines += [f"only after: {item}" for item in self.only_after]
        lines += [f"differs: {name}: {a} -> {b}" for name, (a, b) in self.differences.items()]
        return "\n".join(lines)


def compare(before: BenchmarkReport, after: BenchmarkReport) -> Comparison:
    """Compare two benchmarks, setting by setting.

    Args:
        before: The first, commonly loaded from a file.
        after: The second.

    Raises:
        BenchmarkError: If they have nothing in common.

    Example:
        >>> from fxdecomp.export import BenchmarkReport, Timing, compare
        >>> rows = [Timing("small", "CPUExecutionProvider", 1, 1, (s, s), s, s) for s in (3.0, 2.0)]
        >>> old, new = (BenchmarkReport((row,)) for row in rows)
        >>> print(compare(old, new).rows[0].speedup)
        1.50x [1.50, 1.50]
    """
    first, second = _by_setting(before), _by_setting(after)
    common = [key for key in first if key in second]
    if not common:
        raise BenchmarkError(f"nothing was timed in both: {_words(first)} against {_words(second)}")
    rows = [
        ComparedTiming(
            *key,
            before_s=first[key].median_s,
            after_s=second[key].median_s,
            speedup=ratio_of_medians(first[key].rounds_s, second[key].rounds_s, paired=False),
        )
        for key in common
    ]
    differences = {
        **_differences("machine", before.machine, after.machine),
        **_differences("settings", before.settings, after.settings),
    }
    return Comparison(
        tuple(rows),
        tuple(_words({key: row for key, row in first.items() if key not in second})),
        tuple(_words({key: row for key, row in second.items() if key not in first})),
        differences,
    )


_Key = tuple[str, str, int, int]


def _by_setting(report: BenchmarkReport) -> dict[_Key, Timing]:
    return {
        (row.model, row.provider, row.threads, row.batch): row for row in report.timings if not row.problem
    }


def _words(rows: Mapping[_Key, Timing]) -> list[str]:
    return [f"{m} on {p}, {t} thread(s), batch {b}" for m, p, t, b in rows]


def _differences(where: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    for key in {**a, **b}:
        x, y = a.get(key), b.get(key)
        if isinstance(x, Mapping) and isinstance(y, Mapping):
            found |= _differences(f"{where}.{key}", x, y)
        elif x != y:
            found[f"{where}.{key}"] = (x, y)
    return found
