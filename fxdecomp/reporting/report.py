"""`report`: what became of every Conv and Linear of a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule

from fxdecomp.outcomes import Applied, Outcome, Reason, Skipped
from fxdecomp.plans import Plan
from fxdecomp.records import Record, record_of
from fxdecomp.sites import survey


@dataclass(frozen=True, slots=True)
class Report:
    """Every Conv and Linear of a graph exactly once, with what was done to it or why it was left alone."""

    record: Record

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """All layers, in the order of the graph."""
        return self.record.outcomes

    @property
    def applied(self) -> tuple[Applied, ...]:
        """The layers that were replaced by chains."""
        return tuple(o for o in self.outcomes if isinstance(o, Applied))

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """The layers that were left alone."""
        return tuple(o for o in self.outcomes if isinstance(o, Skipped))

    @property
    def modified(self) -> bool:
        """Whether any layer was replaced."""
        return bool(self.applied)

    @property
    def plan(self) -> Plan:
        """Method and rank of every layer, for `Policy.from_plan`; empty before the first transform."""
        return Plan(()) if self.record.plan is None else Plan.from_dict(self.record.plan)

    @property
    def macs_before(self) -> int:
        """Multiply-accumulates of all Conv and Linear layers before."""
        return sum(o.macs_before for o in self.outcomes)

    @property
    def macs_after(self) -> int:
        """Multiply-accumulates of all Conv and Linear layers now."""
        return sum(o.macs_after for o in self.outcomes)

    @property
    def params_before(self) -> int:
        """Weights and biases of all Conv and Linear layers before."""
        return sum(o.params_before for o in self.outcomes)

    @property
    def params_after(self) -> int:
        """Weights and biases of all Conv and Linear layers now."""
        return sum(o.params_after for o in self.outcomes)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON data."""
        return self.record.to_dict() | {
            "macs_before": self.macs_before,
            "macs_after": self.macs_after,
            "params_before": self.params_before,
            "params_after": self.params_after,
        }

    def __str__(self) -> str:
        header = ("layer", "", "method", "rank", "error", "MACs", "params")
        rows = [header, *(_row(outcome) for outcome in self.outcomes)]
        columns = len(header)
        widths = [max(len(row[i]) for row in rows if len(row) == columns) for i in range(columns)]
        lines = []
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
            if len(row) < columns:
                cells[-1] = row[-1]
            lines.append("  ".join(cells).rstrip())
        lines.append(
            f"{len(self.applied)} of {len(self.outcomes)} layers replaced; "
            f"MACs {_change(self.macs_before, self.macs_after)}, "
            f"params {_change(self.params_before, self.params_after)}"
        )
        lines += [
            f"{fold.norm}: left in the graph, {fold.reason}" for fold in self.record.folds if fold.reason
        ]
        return "\n".join([*lines, *self.record.notes])


def report(gm: GraphModule) -> Report:
    """What became of every Conv and Linear of a graph.

    Args:
        gm: A graph from `transform`; the layers of one that was only traced are listed as untouched.

    Example:
        >>> import torch, fxdecomp
        >>> gm = fxdecomp.trace(torch.nn.Sequential(torch.nn.Linear(4, 2)), torch.randn(1, 4))
        >>> print(fxdecomp.report(gm).skipped[0].layer)
        Linear 4->2
    """
    record = record_of(gm) or Record()
    if record.policy is not None:
        return Report(record)
    found = survey(gm)
    untouched = tuple(site.skipped(Reason.NOT_TRANSFORMED) for site in found.sites)
    return Report(Record(record.traced_with, (*untouched, *found.skipped), record.folds, None, record.notes))


def _row(outcome: Outcome) -> tuple[str, ...]:
    if isinstance(outcome, Skipped):
        return outcome.site, outcome.layer, f"left alone: {outcome.sentence}"
    return (
        outcome.site,
        outcome.layer,
        outcome.method,
        "x".join(map(str, outcome.rank)),
        f"{outcome.relative_error:.1%}",
        _change(outcome.macs_before, outcome.macs_after),
        _change(outcome.params_before, outcome.params_after),
    )


def _change(before: int, after: int) -> str:
    factor = f" (/{before / after:.2f})" if after and after != before else ""
    return f"{short(before)} -> {short(after)}{factor}"


def short(count: int) -> str:
    """A count in three digits, such as `1.24 M`."""
    value, unit = float(count), ""
    for unit in ("", " k", " M", " G", " T"):  # noqa: B007 - the unit that is reached is used below
        if value < 999.5:
            break
        value /= 1000
    return f"{value:.3g}{unit}"
