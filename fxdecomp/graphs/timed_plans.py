"""`TimedPlan`: what a budget of time predicted and measured, as a graph remembers it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class TimedAttempt:
    """One choice of chains that was assembled and timed against the dense network.

    Attributes:
        predicted_share: Its share of the dense network's time, as predicted.
        measured_share: The same, as measured.
        measured_s: Its time.
        dense_s: The dense network's time, measured in turn with it.
        speedup: How many times faster it is, with its 95 % interval.
    """

    predicted_share: float
    measured_share: float
    measured_s: float
    dense_s: float
    speedup: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class TimedCandidate:
    """One way to replace a layer.

    Attributes:
        method: Name of the decomposition, empty for the layer as it is.
        rank: Its rank(s).
        time_s: Its time over all calls, measured or between measured ones.
        error: Its expected squared error, relative to the layer's weight or output.
    """

    method: str
    rank: tuple[int, ...]
    time_s: float
    error: float


@dataclass(frozen=True, slots=True)
class TimedPlan:
    """What a budget of time measured before it chose.

    Attributes:
        attempts: What was assembled and timed, in order.
        taken: Which of them was taken, None where none was faster than the dense network.
        provider_options: The options that everything ran with, by provider.
        layer_error: The error of a layer's time as a share of it, 0 where it is not known.
        layers_share: What the layers add up to, as a share of the dense network's time, where their times are
            differences of small networks; else None.
        timed_again: How often chains were timed again since other work slowed the machine.
        disturbed: Signs that other work disturbed the times.
        layers: What there was to choose from at each layer, the layer as it is first.
    """

    attempts: tuple[TimedAttempt, ...]
    taken: int | None
    provider_options: Mapping[str, Mapping[str, str]]
    layer_error: float = 0.0
    layers_share: float | None = None
    timed_again: int = 0
    disturbed: tuple[str, ...] = ()
    layers: Mapping[str, tuple[TimedCandidate, ...]] = field(default_factory=dict)

    @property
    def measured_share(self) -> float | None:
        """Of the attempt that was taken, None where none was."""
        return None if self.taken is None else self.attempts[self.taken].measured_share

    def to_dict(self) -> dict[str, Any]:
        """The plan's times as JSON data; each candidate is a row, its numbers to four digits."""
        rows = {name: [_row(each) for each in menu] for name, menu in self.layers.items()}
        return asdict(replace(self, layers={})) | {"layers": rows}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> TimedPlan:
        """The inverse of `to_dict`."""
        attempts = [TimedAttempt(**row | {"speedup": tuple(row["speedup"])}) for row in data["attempts"]]
        layers = {
            name: tuple(TimedCandidate(method, tuple(rank), *rest) for method, rank, *rest in rows)
            for name, rows in data.get("layers", {}).items()
        }
        disturbed = tuple(data["disturbed"])
        return TimedPlan(**{**data, "attempts": tuple(attempts), "disturbed": disturbed, "layers": layers})


def _row(candidate: TimedCandidate) -> list[Any]:
    numbers = (float(f"{each:.4g}") for each in (candidate.time_s, candidate.error))
    return [candidate.method, list(candidate.rank), *numbers]
