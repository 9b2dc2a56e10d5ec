"""The page: a report as one HTML file that needs neither network nor script. A pure function of its data."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fxdecomp.errors import printable
from fxdecomp.export.benchmark_report import BenchmarkReport, Timing
from fxdecomp.export.machine import machine
from fxdecomp.export.ratios import ratio_of_medians
from fxdecomp.outcomes import Applied, Outcome
from fxdecomp.policy.text import to_toml_text
from fxdecomp.reporting.charts import (
    HEIGHT,
    WIDTH,
    error_chart,
    frontier_chart,
    rank_chart,
    roofline_chart,
    time_chart,
)
from fxdecomp.reporting.evidence import Variant
from fxdecomp.reporting.graph_rows import graph_rows, runs_of
from fxdecomp.reporting.layer_times import layer_times
from fxdecomp.reporting.memory import Memory, memory_of
from fxdecomp.reporting.rank_curves import rank_curves, timed_ranks
from fxdecomp.reporting.text import error_text, method_text, rank_text, short
from fxdecomp.reporting.topology import topology

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

    from fxdecomp.reporting.report import Report


@dataclass(frozen=True, slots=True)
class LayerLine:
    """One layer of the page: its outcome, and its times in seconds where they were measured."""

    outcome: Outcome
    before_s: float | None = None
    after_s: float | None = None


def page_html(report: Report, title: str) -> str:
    """The whole page as text.

    Args:
        report: What it shows; sections without data are left out.
        title: Its heading.
    """
    times = {} if report.benchmark is None else layer_times(report.outcomes, report.benchmark)
    lines = [LayerLine(o, *times.get(o.site, (None, None))) for o in report.outcomes]
    timed = any(line.before_s is not None and line.after_s is not None for line in lines)
    graphs = (
        runs_of(graph_rows(report.before, report.after, report.outcomes))
        if report.before is not None and report.after is not None
        else ()
    )
    curves = () if report.before is None else rank_curves(report.before, report.outcomes)
    timings = timed_ranks(report.record.latency, report.outcomes)
    variants = variants_of(report)
    memory = memory_lines(report, variants)
    known = {} if report.benchmark is None else dict(report.benchmark.machine)
    return printable(
        _environment()
        .get_template("page.html.j2")
        .render(
            title=title,
            report=report,
            variants=variants,
            lines=lines,
            timed=timed,
            scale=max((_cost(line, timed) for line in lines), default=0) or 1,
            frontier=None if report.frontier is None else frontier_chart(report.frontier),
            roofline=None if report.roofline is None else roofline_chart(report.roofline),
            width=WIDTH,
            height=HEIGHT,
            graphs=graphs,
            applied={o.site: o for o in report.applied},
            latencies=() if report.benchmark is None else latencies_of(report.benchmark),
            qualities=dict.fromkeys(name for v in variants for name in v.quality),
            errors=error_chart(report.errors) if len(report.errors) > 1 else None,
            curves=[(curve, rank_chart(curve)) for curve in curves],
            timings=[(site, found, time_chart(found)) for site, found in timings.items()],
            times=times,
            memory=memory,
            topology=topology(report.after, report.outcomes) if graphs and report.after is not None else None,
            sections=_sections(
                report,
                summary=bool(variants),
                ranks=bool(curves or timings),
                memory=bool(memory),
                graphs=bool(graphs),
            ),
            machine=known or machine(),
            policy=None if report.record.policy is None else to_toml_text(report.record.policy),
        )
    )


def fragment_html(report: Report) -> str:
    """The layers as a table without page or style, for a notebook."""
    return printable(_environment().get_template("fragment.html.j2").render(report=report))


def variants_of(report: Report) -> tuple[Variant, ...]:
    """The networks of the summary: those that were named, or the one before and the one after."""
    if report.variants:
        return report.variants
    files = {} if report.benchmark is None else report.benchmark.settings.get("files", {})
    names = list(files) or (["dense", "small"] if report.outcomes else [])
    counts = [(report.macs_before, report.params_before), (report.macs_after, report.params_after)]
    known = counts if report.outcomes and len(names) == len(counts) else [(None, None)] * len(names)
    return tuple(
        Variant(name, macs=macs, params=params, size_bytes=files.get(name, {}).get("bytes"))
        for name, (macs, params) in zip(names, known, strict=True)
    )


@dataclass(frozen=True, slots=True)
class Latency:
    """One setting of a benchmark: a column of the summary, with a cell for each model."""

    label: str
    cells: Mapping[str, str]


def latencies_of(benchmark: BenchmarkReport) -> tuple[Latency, ...]:
    """Median times, and how many times faster than the first model each is, by setting."""
    columns: dict[str, dict[str, str]] = {}
    first: dict[str, Timing] = {}
    for row in benchmark.timings:
        provider = row.provider.removesuffix("ExecutionProvider")
        label = f"{provider}, {row.threads} thread{'s' if row.threads > 1 else ''}, batch {row.batch}"
        cells = columns.setdefault(label, {})
        if row.problem:
            cells[row.model] = row.problem
            continue
        base = first.setdefault(label, row)
        ratio = "" if base is row else f", {ratio_of_medians(base.rounds_s, row.rounds_s)}"
        cells[row.model] = f"{row.median_s * 1e3:.2f} ms{ratio}"
    return tuple(Latency(label, cells) for label, cells in columns.items())


@dataclass(frozen=True, slots=True)
class MemoryLine:
    """One network's memory: from its graph, and measured, each where it is known."""

    name: str
    planned: Memory | None
    peak_bytes: int | None


def memory_lines(report: Report, variants: Sequence[Variant]) -> tuple[MemoryLine, ...]:
    """What each network takes; empty where nothing of it is known."""
    rows = () if report.benchmark is None else report.benchmark.timings
    peaks = {row.model: row.peak_bytes for row in reversed(rows) if row.peak_bytes is not None}
    graphs = dict(zip((v.name for v in variants), (report.before, report.after), strict=False))
    planned = {name: memory_of(gm) for name, gm in graphs.items() if report.before and gm is not None}
    lines = tuple(MemoryLine(v.name, planned.get(v.name), peaks.get(v.name)) for v in variants)
    return tuple(line for line in lines if line.planned or line.peak_bytes)


def _sections(
    report: Report, *, summary: bool, ranks: bool, memory: bool, graphs: bool
) -> list[tuple[str, str]]:
    """Anchor and name of each section that the page has."""
    shown = {
        ("summary", "Summary"): summary,
        ("frontier", "Cost against quality"): report.frontier is not None,
        ("layers", "Layers"): bool(report.outcomes),
        ("skipped", "Left alone"): bool(report.outcomes),
        ("errors", "Errors along the network"): len(report.errors) > 1,
        ("ranks", "Ranks"): ranks,
        ("lowered", "Lower precision"): bool(report.lowered),
        ("memory", "Memory"): memory,
        ("kernels", "Kernels"): bool(report.roofline or (report.benchmark and report.benchmark.kernels)),
        ("topology", "Network"): graphs,
        ("graph", "Before and after"): graphs,
        ("made", "How this was made"): True,
    }
    return [section for section, there in shown.items() if there]


def _cost(line: LayerLine, timed: bool) -> float:
    """The longer bar of a layer: seconds, or multiply-accumulates where there are no times."""
    if timed:
        return max(line.before_s or 0.0, line.after_s or 0.0)
    return max(line.outcome.macs_before, line.outcome.macs_after)


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fxdecomp.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "short": short,
        "breakable": _breakable,
        "error": error_text,
        "method": method_text,
        "rank": rank_text,
        "data_uri": _data_uri,
        "ms": lambda seconds: f"{seconds * 1e3:.3f}",
        "mb": lambda size: f"{size / 1e6:.2f} MB",
    }
    environment.tests["applied"] = lambda outcome: isinstance(outcome, Applied)
    return environment


def _breakable(name: str) -> Markup:
    """A name, escaped, that may be broken behind its dots and underscores."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([._/])", r"\1<wbr>", str(escape(name))))


def _data_uri(data: Any) -> str:
    """JSON data (or text) as a link that needs no file."""
    kind, text = (
        ("text/plain", data) if isinstance(data, str) else ("application/json", json.dumps(data, indent=2))
    )
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}"
