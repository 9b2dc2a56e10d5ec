"""What a report may hold beside the layers: quality and size of each network, and what a search judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fxdecomp.export.quantization import Quantization
from fxdecomp.export.ranges import ActivationRange, activation_ranges
from fxdecomp.quality import Quality

if TYPE_CHECKING:
    from fxdecomp.searching.trials import SearchResult


@dataclass(frozen=True, slots=True)
class Variant:
    """One network of the summary.

    Attributes:
        name: As in the benchmark, where it was timed.
        quality: What was measured of its quality, in words: `{"lines read": "95.8 %"}`.
        macs: Multiply-accumulates, None where unknown.
        params: Parameters, None where unknown.
        size_bytes: Size of its file, None where there is none.
        distance: How far it is from the original; None for the original, and where it was not measured.
        allowed: Whether its quality is within what the user allows; None where that was not said, and its
            distance decides.

    Example:
        >>> Variant("small", quality={"accuracy": "95.8 %"}).quality["accuracy"]
        '95.8 %'
    """

    name: str
    quality: Mapping[str, str] = field(default_factory=dict)
    macs: int | None = None
    params: int | None = None
    size_bytes: int | None = None
    distance: Quality | None = None
    allowed: bool | None = None


@dataclass(frozen=True, slots=True)
class Lowered:
    """One file in lower precision.

    Attributes:
        text: What it costs, in words.
        ranges: What its int8 values span.
        alone: The error of the outputs where each stage alone is lowered; empty where that was not measured.
        kept: The stages that stay in fp32.
    """

    text: str
    ranges: tuple[ActivationRange, ...] = ()
    alone: tuple[tuple[str, float], ...] = ()
    kept: tuple[str, ...] = ()


def lowered_of(path: Path, found: Quantization | None) -> Lowered:
    """A file in lower precision, with what its ranges span."""
    assert found is not None  # every file in lower precision has it
    return Lowered(str(found), activation_ranges(path), found.alone, found.kept)


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """One network that was judged.

    Attributes:
        name: What it is, in words.
        cost: What it costs, in the frontier's unit.
        quality: How good it is; higher is better.
        accepted: Whether its loss of quality is allowed.
        chosen: Whether it is the one that was taken.

    Example:
        >>> from fxdecomp.reporting import FrontierPoint
        >>> FrontierPoint("half", cost=50.0, quality=0.98, chosen=True).accepted
        True
    """

    name: str
    cost: float
    quality: float
    accepted: bool = True
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class Frontier:
    """Cost against quality.

    Attributes:
        points: The networks, in any order.
        cost_name: What the cost is, with its unit.
        quality_name: What the quality is.
        least_quality: The least quality that is accepted, None where it is not known.
        failed: What was tried and gave no network, with the reason.
        notes: Sentences for the reader.

    Example:
        >>> from fxdecomp.reporting import Frontier, FrontierPoint
        >>> len(Frontier((FrontierPoint("half", 50.0, 0.98),), "ms").best)
        1
    """

    points: tuple[FrontierPoint, ...]
    cost_name: str
    quality_name: str = "quality"
    least_quality: float | None = None
    failed: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> tuple[FrontierPoint, ...]:
        """The points that no other beats in both cost and quality, the cheapest first.

        Example:
            >>> a, b, c = FrontierPoint("a", 1, 0.5), FrontierPoint("b", 2, 0.9), FrontierPoint("c", 3, 0.8)
            >>> [point.name for point in Frontier((a, b, c), "ms").best]
            ['a', 'b']
        """
        kept: list[FrontierPoint] = []
        for point in sorted(self.points, key=lambda p: (p.cost, -p.quality)):
            if not kept or point.quality > kept[-1].quality:
                kept.append(point)
        return tuple(kept)


def frontier_of(search: SearchResult) -> Frontier:
    """The networks that a search judged, by their measured time, or multiply-accumulates without one."""
    timed = search.trials[0].time_share is not None
    unit = "time" if timed else "MACs"

    def name(index: int) -> str:
        return f"{search.trials[index].share:.3g} of the {unit}" if index else "dense"

    tried = list(enumerate(search.trials))
    judged = search.metric_name.rpartition(":")[2].rpartition(".")[2] or "agreement with the original"
    if search.trials[0].least is not None:
        judged += ", on other inputs at least"
    return Frontier(
        tuple(
            FrontierPoint(name(index), trial.cost, trial.judged, trial.accepted, trial is search.best)
            for index, trial in tried
            if not trial.problem
        ),
        "share of the dense network's time" if timed else "multiply-accumulates",
        judged,
        search.trials[0].metric - search.max_drop,
        tuple((name(index), trial.problem) for index, trial in tried if trial.problem),
        search.notes,
    )
