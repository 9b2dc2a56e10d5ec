"""Charts as data: places in a 640 x 360 picture, which the page draws as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fxdecomp.export.kernel_map import KernelMap
from fxdecomp.reporting.error_path import LayerError
from fxdecomp.reporting.evidence import Frontier
from fxdecomp.reporting.rank_curves import RankCurve, TimedRank
from fxdecomp.reporting.text import rank_text, short

WIDTH, HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 24, 16, 48
_TEXT_WIDTH, _TEXT_HEIGHT = 60, 16


@dataclass(frozen=True, slots=True)
class Mark:
    """One point: where it stands, its label for the reader, its class for the style sheet.

    Attributes:
        text: What is written beside it, empty where another's text is too near.
        anchor: On which side of the text it stands, as SVG calls it.
    """

    x: float
    y: float
    label: str
    kind: str
    text: str = ""
    anchor: str = "start"


@dataclass(frozen=True, slots=True)
class Tick:
    """One tick of an axis: where it stands, and its text."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture of points and one line.

    Attributes:
        marks: The points.
        line: Corners of the line.
        x_ticks: Ticks along the bottom.
        y_ticks: Ticks along the left.
        x_name: What the bottom axis counts.
        y_name: What the left axis counts.
        kinds: Classes of the points that the legend names, in order.
        limit: Height of a level line, None without one.
        limit_text: What is written at it.
    """

    marks: tuple[Mark, ...]
    line: tuple[tuple[float, float], ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_name: str
    y_name: str
    kinds: tuple[str, ...] = ()
    limit: float | None = None
    limit_text: str = ""


def frontier_chart(frontier: Frontier) -> Chart:
    """Cost to the right, quality upwards, a step line along what none beats, a level at the least quality."""
    least = frontier.least_quality
    x = _Scale([0.0, *(p.cost for p in frontier.points)], _LEFT, WIDTH - _RIGHT)
    heights = [p.quality for p in frontier.points] + ([] if least is None else [least])
    y = _Scale(heights, HEIGHT - _BOTTOM, _TOP)
    line: list[tuple[float, float]] = []
    for point in frontier.best:
        if line:
            line.append((x(point.cost), line[-1][1]))
        line.append((x(point.cost), y(point.quality)))
    marks = tuple(
        Mark(
            x(p.cost),
            y(p.quality),
            f"{p.name}: {short(p.cost)} {frontier.cost_name}, {frontier.quality_name} {p.quality:.4g}"
            + (", chosen" if p.chosen else ""),
            "chosen" if p.chosen else "accepted" if p.accepted else "rejected",
        )
        for p in frontier.points
    )
    kinds = tuple(kind for kind in ("chosen", "accepted", "rejected") if any(m.kind == kind for m in marks))
    return Chart(
        _with_texts(marks, [p.name.partition(" of the ")[0] for p in frontier.points]),
        tuple(line),
        x.ticks(),
        y.ticks(),
        frontier.cost_name,
        frontier.quality_name,
        kinds,
        None if least is None else y(least),
        "" if least is None else f"least accepted {frontier.quality_name}: {least:.4g}",
    )


def _with_texts(marks: Sequence[Mark], names: Sequence[str]) -> tuple[Mark, ...]:
    """Marks with their names beside them, as far as there is room; the chosen one has it first."""
    order = sorted(range(len(marks)), key=lambda index: marks[index].kind != "chosen")
    taken: list[tuple[float, float]] = []
    texts: dict[int, str] = {}
    for index in order:
        mark = marks[index]
        if all(abs(mark.x - x) > _TEXT_WIDTH or abs(mark.y - y) > _TEXT_HEIGHT for x, y in taken):
            texts[index] = names[index][:20]
            taken.append((mark.x, mark.y))
    return tuple(
        replace(mark, text=texts.get(index, ""), anchor="end" if mark.x > WIDTH * 0.75 else "start")
        for index, mark in enumerate(marks)
    )


def rank_chart(curve: RankCurve) -> Chart:
    """A layer's cost to the right, what is lost at least upwards; a point for each rank."""
    x = _Scale([0.0, 1.0, *(p.cost for p in curve.points)], _LEFT, WIDTH - _RIGHT)
    y = _Scale([0.0, *(p.least_error for p in curve.points)], HEIGHT - _BOTTOM, _TOP)
    marks = tuple(
        Mark(
            x(p.cost),
            y(p.least_error),
            f"rank {rank_text(p.rank)}: {p.cost:.1%} of the layer's multiply-accumulates, "
            f"{p.least_error:.1%} of the weight lost at least" + (", chosen" if p.chosen else ""),
            "chosen" if p.chosen else "accepted",
            rank_text(p.rank) if p.chosen else "",
        )
        for p in curve.points
    )
    names = ("share of the layer's multiply-accumulates", "least weight error")
    return Chart(marks, tuple((mark.x, mark.y) for mark in marks), x.ticks(), y.ticks(), *names, ("chosen",))


def time_chart(candidates: Sequence[TimedRank]) -> Chart:
    """A layer's time to the right, its predicted loss upwards; a point for each candidate."""
    x = _Scale([0.0, *(c.time_s * 1e3 for c in candidates)], _LEFT, WIDTH - _RIGHT)
    y = _Scale([0.0, *(c.error for c in candidates)], HEIGHT - _BOTTOM, _TOP)
    marks = tuple(
        Mark(
            x(c.time_s * 1e3),
            y(c.error),
            f"{c.name}: {c.time_s * 1e3:.3f} ms, {c.error:.2%} lost" + (", chosen" if c.chosen else ""),
            "chosen" if c.chosen else "accepted",
            c.name if c.chosen else "",
            "end" if x(c.time_s * 1e3) > WIDTH * 0.75 else "start",
        )
        for c in candidates
    )
    names = ("milliseconds", "predicted lost share")
    return Chart(marks, tuple((mark.x, mark.y) for mark in marks), x.ticks(), y.ticks(), *names, ("chosen",))


def error_chart(errors: Sequence[LayerError]) -> Chart:
    """The chains from left to right, losses upwards; the line joins what is lost behind the chains before."""
    series = [("by itself", "own"), ("behind those before it", "accumulated")]
    if any(e.at_outputs is not None for e in errors):
        series.append(("alone, at the network's outputs", "at_outputs"))
    rows = [[getattr(e, field) for e in errors] for _, field in series]
    x = _Scale([1.0, float(max(2, len(errors)))], _LEFT, WIDTH - _RIGHT, least_step=1.0)
    y = _Scale([0.0, *(lost for row in rows for lost in row if lost is not None)], HEIGHT - _BOTTOM, _TOP)
    marks = tuple(
        Mark(x(place), y(lost), f"{errors[place - 1].site}: {lost:.2%} {words}", f"series-{index}")
        for index, ((words, _), row) in enumerate(zip(series, rows, strict=True))
        for place, lost in enumerate(row, start=1)
        if lost is not None
    )
    line = tuple((mark.x, mark.y) for mark in marks[len(errors) : 2 * len(errors)])
    names = ("chain, in the order of the graph", "lost share of the variance")
    return Chart(marks, line, x.ticks(), y.ticks(), *names, tuple(words for words, _ in series))


def roofline_chart(roofline: KernelMap) -> Chart:
    """Operations a byte to the right, GFLOP/s upwards, both in decades; the line is what can be reached."""
    ridge = roofline.peak_gflops / roofline.bandwidth_gbytes
    intensities = [point.intensity for point in roofline.points] + [ridge]
    ends = (min(intensities) / 2, ridge, max(intensities) * 2)
    bounds = [min(roofline.peak_gflops, roofline.bandwidth_gbytes * each) for each in ends]
    x = _Scale(list(ends), _LEFT, WIDTH - _RIGHT, log=True)
    y = _Scale([*bounds, *(point.gflops for point in roofline.points)], HEIGHT - _BOTTOM, _TOP, log=True)
    kinds = tuple(dict.fromkeys(point.kind for point in roofline.points))
    marks = tuple(
        Mark(
            x(p.intensity),
            y(p.gflops),
            f"{p.kind}, {p.channels} channels, {p.size}x{p.size}: {p.gflops:.3g} GFLOP/s, "
            f"{p.reached:.0%} of the roofline",
            f"series-{kinds.index(p.kind)}",
        )
        for p in roofline.points
    )
    line = tuple((x(a), y(b)) for a, b in zip(ends, bounds, strict=True))
    return Chart(marks, line, x.ticks(), y.ticks(), "operations a byte", "GFLOP/s", kinds)


class _Scale:
    """Values to places along one axis, with round ticks."""

    def __init__(
        self, values: Sequence[float], start: float, end: float, *, log: bool = False, least_step: float = 0.0
    ) -> None:
        self._log = log
        low, high = (math.log10(v) if log else v for v in (min(values), max(values)))
        self._step = max(_round_step((high - low) or abs(high) or 1.0), least_step)
        if log:
            self._low, self._high = low, high if high > low else low + 1
        else:
            self._low = math.floor(low / self._step + 1e-9) * self._step
            self._high = max(math.ceil(high / self._step - 1e-9) * self._step, self._low + self._step)
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        part = ((math.log10(value) if self._log else value) - self._low) / (self._high - self._low)
        return round(self._start + part * (self._end - self._start), 1)

    def ticks(self) -> tuple[Tick, ...]:
        """Whole decades, or multiples of a round step."""
        if self._log:
            values = [10.0**k for k in range(math.ceil(self._low), math.floor(self._high) + 1)]
        else:
            count = round((self._high - self._low) / self._step)
            values = [self._low + index * self._step for index in range(count + 1)]
        step = 0.0 if self._log else self._step
        return tuple(Tick(self(value), _tick_text(value, step)) for value in values)


def _round_step(span: float) -> float:
    """1, 2 or 5 times a power of ten, some four to a span."""
    power = 10.0 ** math.floor(math.log10(span / 4))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / 4 * 0.999)


def _tick_text(value: float, step: float) -> str:
    if abs(value) >= 1000:
        return short(value)
    if not step or not value:
        return f"{value:g}"
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
