"""`Verdict`: which of the networks to ship, in one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fxdecomp.errors import BenchmarkError
from fxdecomp.export.benchmark_report import BenchmarkReport
from fxdecomp.export.ratios import Ratio
from fxdecomp.reporting.evidence import Variant


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which network to ship, and why.

    Attributes:
        ship: Its name.
        why: The reason, in words: so much faster, so far from the original, so much smaller.
        timed: Whether it rests on measured times.
        place: Where the times are from, in words.
        ratio: How many times faster it is than the first, None where that was not measured.
    """

    ship: str
    why: str
    timed: bool
    place: str = ""
    ratio: Ratio | None = None

    @property
    def sentence(self) -> str:
        """The verdict in one line."""
        return f"ship {self.ship}: {self.why}"

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON data."""
        return asdict(self) | {"sentence": self.sentence}


def verdict_of(benchmark: BenchmarkReport | None, variants: Sequence[Variant]) -> Verdict | None:
    """The fastest network that is shown to be faster than the first and agrees with it; else the first.

    What the user allows agrees, where that was said, or else what has a distance without a warning or none.
    Without times it is the smallest that agrees.

    Args:
        benchmark: Times by the names of the variants.
        variants: The original first, then what was made of it.

    Returns:
        None where there is nothing to choose from.
    """
    if len(variants) < 2:
        return None
    dense, others = variants[0], variants[1:]
    ratios = {other.name: _ratio(benchmark, dense.name, other.name) for other in others}
    timed = any(ratios.values())
    sound = [other for other in others if _is_sound(other)]
    place = _place(benchmark) if benchmark is not None and timed else ""
    if timed:
        shown = [other for other in sound if (ratio := ratios[other.name]) and ratio.low > 1]
        best = max(shown, key=lambda other: float(ratios[other.name] or 0), default=None)
    else:
        sized = [other for other in sound if other.size_bytes is not None]
        best = min(sized, key=lambda other: other.size_bytes or 0, default=sound[0] if sound else None)
    if best is None:
        why = "; ".join(_against(other, ratios[other.name], timed=timed) for other in others)
        return Verdict(dense.name, why, timed, place)
    ratio = ratios[best.name]
    clauses = [f"{ratio} as fast as {dense.name} {place}" if ratio else "not timed"]
    clauses += [] if best.distance is None else [_distance(best)]
    clauses += _metrics(dense, best)
    return Verdict(best.name, ", ".join([*clauses, *_sizes(dense, best)]), timed, place, ratio)


def _is_sound(variant: Variant) -> bool:
    if variant.allowed is not None:
        return variant.allowed
    return variant.distance is None or not variant.distance.is_poor


def _metrics(dense: Variant, best: Variant) -> list[str]:
    """What was measured of both in the user's own words."""
    own = [name for name in best.quality if name in dense.quality]
    return [f"{name} {best.quality[name]}, was {dense.quality[name]}" for name in own]


def _ratio(benchmark: BenchmarkReport | None, slow: str, fast: str) -> Ratio | None:
    try:
        return None if benchmark is None else benchmark.ratio(slow, fast)
    except BenchmarkError:
        return None


def _place(benchmark: BenchmarkReport) -> str:
    row = next(row for row in benchmark.timings if not row.problem)
    threads = f"{row.threads} thread{'s' if row.threads > 1 else ''}"
    return f"({row.provider.removesuffix('ExecutionProvider')}, {threads})"


def _distance(variant: Variant) -> str:
    assert variant.distance is not None
    alike = variant.distance.same_decisions
    text = f"differs from the original by {variant.distance.relative_error:.1%}"
    return text if alike is None else f"{text} and decides alike in {alike:.1%}"


def _sizes(dense: Variant, best: Variant) -> list[str]:
    """How much smaller the file is, or else how many parameters fewer there are."""
    if dense.size_bytes and best.size_bytes:
        return [f"{best.size_bytes / 1e6:.2f} MB instead of {dense.size_bytes / 1e6:.2f} MB"]
    if dense.params and best.params:
        return [f"{best.params / dense.params:.0%} of the parameters"]
    return []


def _against(other: Variant, ratio: Ratio | None, *, timed: bool) -> str:
    if other.allowed is False:
        return f"{other.name} loses more than is allowed"
    if not _is_sound(other) and other.distance is not None:
        return f"{other.name} agrees with it by {other.distance.agreement:.2f} only"
    if ratio is not None:
        return f"{other.name} is not shown to be faster, {ratio}"
    return f"{other.name} has no times" if timed else f"{other.name} is no better"
