"""Tables for the terminal: they fold rather than grow wider than it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from fxdecomp.errors import printable
from fxdecomp.export import BenchmarkReport, Kernel
from fxdecomp.inspecting.layers import LayerRow
from fxdecomp.outcomes import Skipped
from fxdecomp.reporting import Report
from fxdecomp.reporting.text import error_text, method_text, rank_text, short


class _PrintableTable(Table):
    """A table whose cells never command a terminal, whatever a file calls its layers."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add a row of plain texts."""
        super().add_row(*map(_shown, cells), **options)


def _shown(cell: RenderableType | None) -> RenderableType | None:
    if isinstance(cell, Text):
        return Text(printable(cell.plain), style=cell.style)
    return Text(printable(cell)) if isinstance(cell, str) else cell


def table_with(title: str, columns: Mapping[str, str]) -> Table:
    """An empty table; a column is `left`, `right` or `name` (folded, never cut)."""
    shown = Text(printable(title)) if title else None
    table = _PrintableTable(title=shown, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name, kind in columns.items():
        right = kind == "right"
        table.add_column(name, justify="right" if right else "left", no_wrap=right, overflow="fold")
    return table


def inspect_table(rows: Sequence[LayerRow]) -> Table:
    """Layers that a method suits, each in a line: their part of the cost, and whether it is worth it."""
    timed = any(row.time_share is not None for row in rows)
    columns = {"layer": "name", "kind": "left", "MACs": "right", "time" if timed else "params": "right"}
    table = table_with("", columns | {"worth it": "left"})
    table.padding = (0, 1, 0, 0)  # so that long names have their line
    for row in rows:
        if row.methods:
            other = row.params_share if row.time_share is None else row.time_share
            table.add_row(Text(row.site), _compact(row.layer), f"{row.share:.1%}", f"{other:.1%}", row.worth)
    return table


def left_alone(rows: Sequence[LayerRow]) -> str:
    """What no method suits, by kind and reason, each with its part of the cost."""
    groups: dict[tuple[str, str], list[LayerRow]] = {}
    for row in rows:
        if not row.methods:
            groups.setdefault((row.layer.partition(" ")[0], row.reason), []).append(row)
    lines = []
    for (kind, reason), group in groups.items():
        names = f" ({', '.join(row.site for row in group)})" if len(group) < 4 else ""
        macs, params = sum(row.share for row in group), sum(row.params_share for row in group)
        lines.append(f"{len(group)} {kind}{names}, {macs:.1%} of MACs, {params:.1%} of parameters: {reason}")
    return "\n".join(["Left alone:", *lines]) if lines else ""


def _compact(layer: str) -> str:
    """`64->128 3x3 /2` for `Conv2d 64->128, 3x3, stride 2x2`."""
    text = re.sub(r", stride (\d+)(x\1)?$", r" /\1", layer.removeprefix("Conv2d ").removeprefix("Linear "))
    return text.replace(",", "")


def layer_tables(report: Report) -> list[Table]:
    """The layers that were replaced, and those that were left alone; what multiplies nothing by its kind."""
    columns = {"layer": "name", "method": "left", "rank": "right", "error": "right"}
    replaced = table_with("", columns | {"MACs": "right", "factor": "right"})
    for o in report.applied:
        replaced.add_row(
            Text(o.site),
            method_text(o),
            rank_text(o.rank),
            error_text(o),
            f"{short(o.macs_before)} > {short(o.macs_after)}",
            f"/{o.macs_before / o.macs_after:.2f}" if o.macs_after else "",
        )
    costs = {"MACs": "right", "params": "right"}
    skipped = table_with("Left alone", {"layer": "name", "": "left"} | costs | {"reason": "left"})
    free: dict[tuple[str, str], list[Skipped]] = {}  # norms, positions: many of a kind, for one reason
    for s in report.skipped:
        if s.macs:
            skipped.add_row(Text(s.site), s.layer, short(s.macs), short(s.params), Text(s.sentence))
        else:
            free.setdefault((s.layer.partition(" ")[0], s.sentence), []).append(s)
    for (kind, sentence), group in free.items():
        what = group[0].layer if len(group) == 1 else f"{len(group)} {kind}"
        name = group[0].site if len(group) == 1 else f"{group[0].site}, ..."
        skipped.add_row(Text(name), what, "0", short(sum(s.params for s in group)), Text(sentence))
    return [table for table in (replaced, skipped) if table.row_count]


def benchmark_table(report: BenchmarkReport) -> Table:
    """Times of each model in each setting, against the first model."""
    columns = {"model": "name", "provider": "left", "threads": "right", "batch": "right"}
    columns |= {"first ms": "right", "median ms": "right", "p95 ms": "right"}
    memory = any(row.peak_bytes is not None for row in report.timings)
    columns |= {"peak MB": "right"} if memory else {}
    table = table_with("", columns | {"faster than first": "left"})
    base: dict[tuple[str, int, int], str] = {}
    for row in report.timings:
        setting = (row.provider, row.threads, row.batch)
        head = (Text(row.model), row.provider.removesuffix("ExecutionProvider"), str(row.threads))
        if row.problem:
            brief = re.split("[:,;]", row.problem)[0]  # all of it is told below, where there is room
            table.add_row(*head, str(row.batch), *[""] * (len(columns) - 4), Text(brief))
            continue
        first = base.setdefault(setting, row.model)
        ratio = (
            ""
            if first == row.model
            else str(
                report.ratio(first, row.model, provider=setting[0], threads=setting[1], batch=setting[2])
            )
        )
        times = [f"{seconds * 1e3:.3f}" for seconds in (row.first_run_s, row.median_s, row.p95_s)]
        if memory:
            times.append("" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.1f}")
        table.add_row(*head, str(row.batch), *times, Text(ratio))
    return table


def kernel_table(name: str, kernels: Sequence[Kernel]) -> Table:
    """Where the time of a model goes: its layers, and the sum of each kind."""
    columns = {"layer": "name", "kind": "left", "ms": "right", "share": "right", "MMACs": "right"}
    table = table_with(f"{name}, by kernel", columns | {"GFLOP/s": "right"})
    for kind in dict.fromkeys(kernel.kind for kernel in kernels):
        group = [kernel for kernel in kernels if kernel.kind == kind]
        for kernel in group:
            _add_kernel(table, kernel)
        if len(group) > 1:
            sums = sum(k.time_s for k in group), sum(k.share for k in group), sum(k.macs for k in group)
            _add_kernel(table, Kernel(f"all {kind}", kind, *sums, ""), style="bold")
    return table


def _add_kernel(table: Table, kernel: Kernel, style: str = "") -> None:
    counts = (f"{kernel.macs / 1e6:.2f}", f"{kernel.gflops:.1f}") if kernel.macs else ("", "")
    time = f"{kernel.time_s * 1e3:.3f}"
    table.add_row(Text(kernel.name), kernel.kind, time, f"{kernel.share:.1%}", *counts, style=style)


def coloured_diff(text: str) -> Text:
    """A unified diff with its lines in the usual colours."""
    colours = {"+": "green", "-": "red", "@": "cyan"}
    lines = (Text(f"{printable(line)}\n", style=colours.get(line[:1], "")) for line in text.splitlines())
    return Text().join(lines)
