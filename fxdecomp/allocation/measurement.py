"""`Measurement`: how the times of a plan were taken, and whether other work disturbed them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fxdecomp.export import Ratio
from fxdecomp.graphs.timed_plans import TimedAttempt, TimedCandidate, TimedPlan
from fxdecomp.latency.chain_times import ChainTimes

_DRIFT = 1.15
"""How far two times of the dense network may lie apart."""


def has_drifted(drift: float) -> bool:
    """Whether a ratio of two times of one network shows that the machine did other work."""
    return max(drift, 1 / drift) > _DRIFT


@dataclass(frozen=True, slots=True, eq=False)
class Measurement:
    """How the times of a plan were taken.

    Attributes:
        times: The times of the layers.
        layers_share: What the layers add up to, as a share of the dense network's time, where their times
            are differences of small networks; else 0.
        drift: The dense network's time after its layers, as a share of that before them.
        unsure: How much faster the plan is, where the rounds of its check disagree; else None.
    """

    times: ChainTimes
    layers_share: float
    drift: float
    unsure: Ratio | None

    def timed_plan(
        self,
        attempts: Sequence[TimedAttempt],
        taken: int | None,
        layers: Mapping[str, tuple[TimedCandidate, ...]],
    ) -> TimedPlan:
        """What a graph remembers of it.

        Args:
            attempts: What was assembled and timed.
            taken: Which of them was taken, None for none.
            layers: What there was to choose from.
        """
        place = self.times.place
        return TimedPlan(
            tuple(attempts),
            taken,
            {place.provider: dict(place.options)},
            self.times.error,
            self.layers_share or None,
            self.times.again,
            tuple(self._signs()),
            layers,
        )

    def notes(self) -> tuple[str, ...]:
        """What the reader of a plan should know of its times, in sentences."""
        place, found = self.times.place, []
        if place.options:
            said = ", ".join(f"{name}={value}" for name, value in place.options.items())
            found.append(f"dense and small network alike ran with {said}")
        if self.layers_share:
            found.append(
                f"{place.provider} gives no times of single layers: they are differences of small networks, "
                f"known to {self.times.error:.1%}; those of all layers add up to {self.layers_share:.0%} of "
                "the dense network's time"
            )
        return tuple(found + [self.warning] * bool(self.warning))

    @property
    def warning(self) -> str:
        """That other work disturbed the times, empty where nothing shows it."""
        signs = [*self._signs()]
        return f"disturbed timings: {'; '.join(signs)}; plan again when the machine is idle" if signs else ""

    def _signs(self) -> Iterator[str]:
        if self.times.disturbed:
            yield (
                f"{self.times.disturbed} time(s) of layers were taken while the machine was up to "
                f"{self.times.slowest:.1f} times slower than at its quickest"
            )
        if has_drifted(self.drift):
            yield f"the dense network took {self.drift:.2f} times as long after its layers as before them"
        if self.unsure is not None:
            yield f"rounds of the check disagree ({self.unsure})"
