"""The networks of a run as rows of its report."""

from __future__ import annotations

from fxdecomp.compressing.results import Goal
from fxdecomp.export import ExportReport
from fxdecomp.reporting import Report, Variant
from fxdecomp.searching.judgements import Judgement


def is_allowed(judged: Judgement | None, dense: Judgement | None, goal: Goal | None) -> bool | None:
    """Whether a network keeps the metric as a goal wants it; None where that is not known."""
    if goal is None or judged is None or dense is None or None in (judged.metric, dense.metric):
        return None
    assert judged.metric is not None
    assert dense.metric is not None
    return judged.metric >= dense.metric - goal.max_drop


def variant_of(name: str, report: Report, written: ExportReport | None, judged: Judgement | None) -> Variant:
    """A network's row in the summary, with how good it is."""
    return Variant(
        name,
        {} if judged is None else judged.cells,
        report.macs_before if name == "dense" else report.macs_after,
        report.params_before if name == "dense" else report.params_after,
        None if written is None else written.size_bytes,
        None if judged is None else judged.quality,
    )
