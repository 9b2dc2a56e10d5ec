"""Widths in a budget of time: what layers with fewer channels between them take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fxdecomp.allocation.candidates import Candidate, Question
from fxdecomp.allocation.combined import Place, Totals
from fxdecomp.allocation.pricing import candidate_time_s, price, with_times
from fxdecomp.allocation.timed import LatencyPlanner
from fxdecomp.layers import LayerSpec
from fxdecomp.places.coupling import Coupling
from fxdecomp.places.heads import Heads
from fxdecomp.places.narrowing import narrower
from fxdecomp.progress import Progress


@dataclass(frozen=True, slots=True, eq=False)
class Priced:
    """What a budget of time may choose from.

    Attributes:
        menus: The timed candidates of all layers that it may change.
        places: The places whose options are timed, by name.
        totals: What the network takes.
    """

    menus: dict[str, tuple[Candidate, ...]]
    places: Mapping[str, Place]
    totals: Totals


def priced(
    planner: LatencyPlanner,
    questions: Mapping[str, Question],
    menus: Mapping[str, Sequence[Candidate]],
    places: Mapping[Place, Coupling | Heads],
    progress: Progress,
) -> Priced:
    """Time what may be chosen. What attention computes of its heads is counted as if they were whole.

    Args:
        planner: Times layers, and the network.
        questions: What is asked about the layers of the budget.
        menus: Their candidates.
        places: What may be narrowed, its options in the order of their widths.
        progress: Told of every candidate.
    """
    times = planner.times
    known = price(questions, menus, times, progress)
    for site in (site for place in places for site in place.layers if site.name not in known):
        time_s = candidate_time_s(times, site.specs, None, ())
        known[site.name] = (Candidate(None, (), 0.0, site.macs, site.params, time_s),)
    found: dict[str, Place] = {}
    for place, narrowing in places.items():

        def taken(option: Candidate, narrowing: Coupling | Heads = narrowing) -> float:
            return sum(times.time_s((spec,)) for spec in _narrowed(narrowing, option.rank[0]))

        found[place.name] = replace(place, options=tuple(with_times(place.options, taken)))
    open_ = {name: menu[0].time_s or 0.0 for name, menu in known.items()}
    fixed = planner.fixed_s(open_)
    return Priced(known, found, Totals(fixed, fixed + sum(open_.values())))


def _narrowed(place: Coupling | Heads, width: int) -> Iterator[LayerSpec]:
    """The geometry of a place's layers at each of their calls, where its first layer has a width."""
    for site in place.layers:
        for spec in site.specs:
            yield narrower(place, site, spec, width)
