"""Pictures for papers and notebooks. matplotlib is imported when one is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxdecomp.errors import FxdecompError
from fxdecomp.reporting.layer_times import layer_times

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fxdecomp.reporting.report import Report

_BEFORE, _AFTER, _CHOSEN = "0.65", "tab:blue", "tab:orange"


def new_axes(axes: Axes | None, size: tuple[float, float] = (6.4, 4.0)) -> Axes:
    """The axes to draw on: those given, or new ones of a figure of its own.

    Raises:
        FxdecompError: matplotlib is not installed.
    """
    if axes is not None:
        return axes
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise FxdecompError("a picture needs matplotlib; install `fxdecomp[plots]`") from error
    return pyplot.subplots(figsize=size, layout="constrained")[1]


def plot_layers(report: Report, axes: Axes | None) -> Axes:
    """See `Report.plot_layers`."""
    outcomes = [outcome for outcome in report.outcomes if outcome.macs_before]
    if not outcomes:
        raise FxdecompError("the report has no layer to draw")
    sites = [outcome.site for outcome in outcomes]
    times = {} if report.benchmark is None else layer_times(report.outcomes, report.benchmark)
    if any(None not in pair for pair in times.values()):
        before = [1e3 * (times[site][0] or 0.0) for site in sites]
        after = [1e3 * (times[site][1] or 0.0) for site in sites]
        unit = "milliseconds"
    else:
        before = [o.macs_before / 1e6 for o in outcomes]
        after = [o.macs_after / 1e6 for o in outcomes]
        unit = "million multiply-accumulates"
    axes = new_axes(axes, (6.4, max(2.0, 0.6 + 0.22 * len(sites))))
    places = range(len(sites))
    axes.barh([place - 0.2 for place in places], before, 0.4, color=_BEFORE, label="before")
    axes.barh([place + 0.2 for place in places], after, 0.4, color=_AFTER, label="after")
    axes.set_yticks(list(places), sites, fontsize="small")
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.legend()
    return axes


def plot_frontier(report: Report, axes: Axes | None) -> Axes:
    """See `Report.plot_frontier`."""
    if report.frontier is None:
        raise FxdecompError("the report holds no search; make it with fxdecomp.report(gm, search=result)")
    axes = new_axes(axes)
    frontier = report.frontier
    best = frontier.best
    axes.step([p.cost for p in best], [p.quality for p in best], where="post", color="0.3", zorder=1)
    kinds = {
        "rejected": [p for p in frontier.points if not p.accepted and not p.chosen],
        "accepted": [p for p in frontier.points if p.accepted and not p.chosen],
        "chosen": [p for p in frontier.points if p.chosen],
    }
    looks = {"rejected": ("x", "tab:red"), "accepted": ("o", _AFTER), "chosen": ("*", _CHOSEN)}
    for kind, points in kinds.items():
        marker, colour = looks[kind]
        if points:
            axes.scatter(
                [p.cost for p in points],
                [p.quality for p in points],
                s=180 if kind == "chosen" else 40,
                c=colour,
                marker=marker,
                label=kind,
                zorder=2,
            )
    if frontier.least_quality is not None:
        axes.axhline(frontier.least_quality, color="tab:red", linestyle="--", label="least accepted")
    axes.set_xlabel(frontier.cost_name)
    axes.set_ylabel(frontier.quality_name)
    axes.legend()
    return axes


def plot_kernels(report: Report, axes: Axes | None) -> Axes:
    """See `Report.plot_kernels`."""
    if report.roofline is not None:
        axes = new_axes(axes)
        report.roofline.draw(axes)
        return axes
    if report.benchmark is None or not report.benchmark.kernels:
        raise FxdecompError(
            "the report holds no kernels; make it with fxdecomp.report(gm, benchmark=...) or roofline=..."
        )
    axes = new_axes(axes)
    tables = report.benchmark.kernels
    left = dict.fromkeys(tables, 0.0)
    for kind in dict.fromkeys(kernel.kind for table in tables.values() for kernel in table):
        widths = [1e3 * sum(k.time_s for k in table if k.kind == kind) for table in tables.values()]
        axes.barh(list(tables), widths, left=list(left.values()), label=kind)
        left = {name: left[name] + width for name, width in zip(tables, widths, strict=True)}
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds in kernels, one run")
    axes.legend()
    return axes
