"""`SearchResult`: the networks that a search judged, and the file that it goes on from."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch.fx import GraphModule

from fxdecomp.calibration import Calibration
from fxdecomp.errors import FxdecompError
from fxdecomp.export.notebook import html_table
from fxdecomp.files import read_json, write_json
from fxdecomp.graphs.fingerprints import fingerprint
from fxdecomp.graphs.inputs import ExampleInputs, call_arguments
from fxdecomp.graphs.records import Record
from fxdecomp.plans import Plan

_EDGE = 0.25


@dataclass(frozen=True, slots=True)
class Trial:
    """One network that was judged.

    Attributes:
        share: The budget, as a share of what the dense network costs.
        macs: What the network takes.
        params: Its parameters.
        metric: What the metric said, or the mean of its scores; NaN where no network meets the budget, or it
            said nothing finite.
        accepted: Whether the loss is within what the user allows.
        problem: Why there is no network, empty where there is one.
        time_share: Measured time as a share of the dense network's, None where no time was measured.
        record: What the network tells of itself, so that a search that goes on from its state gives the same;
            None for the dense network and where there is none.
        least: What the metric is on other inputs at least (see `confidence`), where it gives one score an
            input; else None.
    """

    share: float
    macs: int
    params: int
    metric: float
    accepted: bool
    problem: str = ""
    time_share: float | None = None
    record: Record | None = field(default=None, repr=False)
    least: float | None = None

    @property
    def judged(self) -> float:
        """By what it is accepted or not: the least that the metric is, where that is known."""
        return self.metric if self.least is None else self.least

    @property
    def verdict(self) -> str:
        """Whether it is accepted, or why there is no network."""
        return self.problem or ("accepted" if self.accepted else "rejected")

    @property
    def plan(self) -> Plan | None:
        """Methods and ranks, None for the dense network and where there is none."""
        return None if self.record is None else self.record.plan

    @property
    def cost(self) -> float:
        """What a search compares: the share of the time where it was measured, else MACs."""
        return self.macs if self.time_share is None else self.time_share


@dataclass(frozen=True, slots=True, eq=False)
class SearchResult:
    """What `search` found.

    Attributes:
        model: The fastest accepted network; the original's layers, untouched, where none was.
        trials: All networks judged, the dense one first.
        best: The trial of `model`.
        max_drop: The loss that was allowed.
        speedup: `(value, low, high)`: how many times faster than the dense network `model` was measured, with
            its 95 % interval; None where nothing was timed.
        notes: Sentences for the reader.
        metric_name: `module:name` of the metric, empty for the agreement with the original's outputs.

    Example:
        >>> import torch, fxdecomp
        >>> gm = fxdecomp.trace(torch.nn.Sequential(torch.nn.Linear(64, 32)), torch.randn(1, 64))
        >>> found = fxdecomp.search(gm, torch.randn(4, 64), max_drop=2.0, evaluations=1)
        >>> [trial.macs for trial in found.trials], found.best.accepted
        ([2048, 576], True)
    """

    model: GraphModule
    trials: tuple[Trial, ...]
    best: Trial
    max_drop: float
    speedup: tuple[float, float, float] | None = None
    notes: tuple[str, ...] = ()
    metric_name: str = ""

    @property
    def frontier(self) -> tuple[Trial, ...]:
        """The trials that no other beats in both cost and metric, the dearest first."""
        kept: list[Trial] = []
        judged = [trial for trial in self.trials if not math.isnan(trial.metric)]
        for trial in sorted(judged, key=lambda t: (t.cost, -t.metric)):
            if not kept or trial.metric > kept[-1].metric:
                kept.append(trial)
        return tuple(kept[::-1])

    def to_dict(self) -> dict[str, Any]:
        """The search as JSON data, without the model: the plans are in the trials."""
        return {
            "max_drop": self.max_drop,
            "best": self.trials.index(self.best),
            "trials": [_plain(trial) for trial in self.trials],
            "frontier": [self.trials.index(trial) for trial in self.frontier],
            "speedup": self.speedup,
            "notes": list(self.notes),
        }

    def save(self, path: str | Path) -> None:
        """Write `to_dict` as JSON, whole or not at all."""
        write_json(Path(path), self.to_dict())

    def _repr_html_(self) -> str:
        scored = ["on others at least"] if self._has_scores else []
        head = ["share", "time", "MACs", "parameters", "metric", *scored, "verdict"]
        rows = [
            [
                f"{trial.share:.3f}",
                "" if trial.time_share is None else f"{trial.time_share:.3f}",
                f"{trial.macs:,}",
                f"{trial.params:,}",
                "" if math.isnan(trial.metric) else f"{trial.metric:.4f}",
                *(["" if trial.least is None else f"{trial.least:.4f}"] if scored else []),
                trial.verdict + (", taken" if trial is self.best else ""),
            ]
            for trial in self.trials
        ]
        return html_table(head, rows, self.notes)

    def __str__(self) -> str:
        others = f"  {'on others':>9}" if self._has_scores else ""
        lines = [f"{'share':>6}  {'time':>6}  {'MACs':>13}  {'params':>11}  {'metric':>8}{others}"]
        for trial in self.trials:
            mark = ", taken" if trial is self.best else ""
            time = "-" if trial.time_share is None else f"{trial.time_share:.3f}"
            judged = "-" if math.isnan(trial.metric) else f"{trial.metric:.4f}"
            row = f"{trial.share:6.3f}  {time:>6}  {trial.macs:13,}  {trial.params:11,}  {judged:>8}"
            if others:
                least = "-" if trial.least is None else f">{trial.least:.4f}"
                row += f"  {least:>9}"
            lines.append(f"{row}  {trial.verdict}{mark}")
        return "\n".join([*lines, *self.notes])

    @property
    def _has_scores(self) -> bool:
        return self.trials[0].least is not None


def next_share(trials: list[Trial], least_share: float, max_drop: float) -> float:
    """The share to judge next: inside the bracket of the cheapest accepted and the dearest rejected one.

    On a logarithmic scale, where the line through the losses at both ends meets `max_drop`; never in the
    outer quarters of the bracket, and in its middle where an end has no loss. The distance of an end that
    stays is halved with every further trial on the other side (the Illinois method, Dowell and Jarratt 1971,
    BIT 11), as the loss rises slowly at first and steeply then.
    """
    wanted = trials[0].metric
    above = min((t for t in trials if t.accepted), key=lambda t: t.share)
    below = max((t for t in trials if not t.accepted), key=lambda t: t.share, default=None)
    low = least_share if below is None or below.share >= above.share else max(below.share, least_share)
    place = 0.5
    if below is not None and not math.isnan(below.metric) and below.share < above.share:
        room, excess = max_drop - (wanted - above.judged), (wanted - below.judged) - max_drop
        verdict = trials[-1].accepted
        same = sum(1 for _ in itertools.takewhile(lambda t: t.accepted == verdict, reversed(trials[1:])))
        halved = 0.5 ** max(same - 1, 0)
        room, excess = (room, excess * halved) if verdict else (room * halved, excess)
        if room + excess > 0:
            place = min(max(room / (room + excess), _EDGE), 1 - _EDGE)
    return math.exp(math.log(above.share) + place * (math.log(low) - math.log(above.share)))


def _plain(trial: Trial) -> dict[str, Any]:
    """A trial as JSON data, its plan in the place of its record."""
    data = _row(trial)
    del data["record"]
    return data | {"plan": None if trial.plan is None else trial.plan.to_dict()}


def _row(trial: Trial) -> dict[str, Any]:
    """A trial as JSON data, the inverse of `_trial`."""
    return {
        **{each.name: getattr(trial, each.name) for each in fields(trial)},
        "metric": None if math.isnan(trial.metric) else trial.metric,
        "record": None if trial.record is None else trial.record.to_dict(),
    }


def save_state(path: str | Path | None, settings: Mapping[str, Any], trials: list[Trial]) -> None:
    """Write the trials so far, whole or not at all; nothing where there is no path."""
    if path is not None:
        write_json(Path(path), {"settings": settings, "trials": [_row(trial) for trial in trials]})


def fingerprint_of(gm: GraphModule, data: Calibration | None, example_inputs: ExampleInputs) -> str:
    """A hash of the network, the inputs, and how they are used."""
    if data is None:
        return fingerprint({}, [gm], call_arguments(example_inputs))
    options = {"samples": data.samples, "seed": data.seed, "refit": data.refit}
    return fingerprint(options, [gm], [call_arguments(each) for each in (example_inputs, *data.batches)])


def own_state(path: str | Path | None, settings: Mapping[str, Any]) -> Path | None:
    """The state file of a search: the one that is named, or one beside it where another search has that.

    Args:
        path: The file that is named, None for a search that keeps no state.
        settings: What tells one search from another; they name the file beside it.
    """
    if path is None:
        return None
    named = Path(path)
    try:
        other = named.exists() and read_json(named)["settings"] != settings
    except (ValueError, KeyError, TypeError):
        other = False  # it holds no state at all, which is told when it is read
    if not other:
        return named
    mark = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return named.with_name(f"{named.stem}-{mark}{named.suffix}")


def restored_trials(path: str | Path | None, settings: Mapping[str, Any]) -> list[Trial]:
    """The trials of an earlier search of the same settings, none where there is no file.

    Raises:
        FxdecompError: The file belongs to another search, or is damaged.
    """
    if path is None or not Path(path).exists():
        return []
    try:
        data = read_json(Path(path))
        if data["settings"] != settings:
            raise FxdecompError(f"{path} belongs to another search; give another state file, or delete it")
        return [_trial(row) for row in data["trials"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FxdecompError(f"{path} holds no state of a search: {error!r}; delete it") from error


_KINDS: Mapping[str, tuple[type, ...]] = {
    "share": (int, float),
    "macs": (int,),
    "params": (int,),
    "metric": (int, float),
    "accepted": (bool,),
    "problem": (str,),
    "time_share": (int, float, type(None)),
    "record": (dict, type(None)),
    "least": (int, float, type(None)),
}


def _trial(row: Mapping[str, Any]) -> Trial:
    """A trial out of JSON data, whose types are checked: they come from a file."""
    values = {**row, "metric": math.nan if row["metric"] is None else row["metric"]}
    for name, value in values.items():
        if type(value) not in _KINDS[name]:
            raise TypeError(f"{name} is {value!r}")
        if isinstance(value, float) and math.isinf(value):
            raise ValueError(f"{name} is infinite")
    if not 0 < values["share"] <= 1:
        raise ValueError(f"share is {values['share']!r}")
    record = values.get("record")
    return Trial(**values | {"record": None if record is None else Record.from_dict(record)})
