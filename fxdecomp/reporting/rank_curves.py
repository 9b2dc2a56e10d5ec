"""What other ranks would cost and lose: by the singular values of a weight, and as a budget of time measured.

A chain of rank R has, of every unfolding that its method looks at, at most rank R: what lies behind the R-th
singular value is lost at least (Eckart and Young 1936, Psychometrika 1). For the methods with one matrix the
bound is reached.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch.fx import GraphModule

from fxdecomp.decompositions import Decomposition, Problem, method_for, method_named, problems_of
from fxdecomp.errors import PolicyError
from fxdecomp.graphs.timed_plans import TimedPlan
from fxdecomp.layers import LayerSpec
from fxdecomp.outcomes import Applied, Outcome
from fxdecomp.passes import FoldBatchNorm
from fxdecomp.ranks import Ratio
from fxdecomp.reporting.text import rank_text
from fxdecomp.sites import survey

_SHARES = tuple(step / 16 for step in range(1, 17))
_MOST_LAYERS, _MOST_NUMBERS = 24, 2_500_000


@dataclass(frozen=True, slots=True)
class RankPoint:
    """One rank of a layer.

    Attributes:
        rank: The rank.
        cost: Its multiply-accumulates, as a share of the layer's.
        least_error: The least relative error of the weight that a chain of this rank can have.
        chosen: Whether it is the rank that was taken.
    """

    rank: tuple[int, ...]
    cost: float
    least_error: float
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class RankCurve:
    """The ranks of one layer, the cheapest first."""

    site: str
    layer: str
    method: str
    points: tuple[RankPoint, ...]


@dataclass(frozen=True, slots=True)
class TimedRank:
    """One candidate of a layer that a budget of time had a time for.

    Attributes:
        name: Method and rank, or `dense`.
        time_s: Its time, measured or between measured ones.
        error: The lost share that was predicted for it.
        chosen: Whether it was taken.
    """

    name: str
    time_s: float
    error: float
    chosen: bool


def timed_ranks(latency: TimedPlan | None, outcomes: Sequence[Outcome]) -> dict[str, tuple[TimedRank, ...]]:
    """The timed candidates of the layers that took most, the quickest first, by the layers' names.

    Args:
        latency: What a budget of time measured, None without one.
        outcomes: What became of the layers.
    """
    menus = {} if latency is None else latency.layers
    known = [o for o in outcomes if o.site in menus]
    largest = {o.site for o in sorted(known, key=lambda o: -o.macs_before)[:_MOST_LAYERS]}
    found = {}
    for outcome in (o for o in known if o.site in largest):
        taken = (outcome.method, outcome.rank) if isinstance(outcome, Applied) else ("", ())
        ranks = [
            TimedRank(
                f"{each.method} {rank_text(each.rank)}" if each.method else "dense",
                each.time_s,
                each.error,
                (each.method, each.rank) == taken,
            )
            for each in menus[outcome.site]
        ]
        found[outcome.site] = tuple(sorted(ranks, key=lambda rank: rank.time_s))
    return found


def rank_curves(before: GraphModule, outcomes: Sequence[Outcome]) -> tuple[RankCurve, ...]:
    """The curves of the layers that took most and were replaced, in the order of the graph.

    Layers that share stages have none: their rank is that of several. Those beyond the 24 that took most,
    and weights of more than 2.5 million numbers, have none: their singular values would take longer than all
    else of a page.
    """
    applied = [o for o in outcomes if isinstance(o, Applied) and not o.shares]
    largest = sorted(applied, key=lambda o: -o.macs_before)[:_MOST_LAYERS]
    wanted = {o.site: o for o in largest}
    curves = []
    for site in survey(FoldBatchNorm()(before)).sites:
        outcome = wanted.get(site.name)
        if outcome is None or site.weight.numel() > _MOST_NUMBERS:
            continue
        try:
            method = method_for(method_named(outcome.method), site.spec.per_group)
        except PolicyError:  # a method of someone's own, which is not in the registry here
            continue
        if method.refusal(site.spec.per_group) is None and method.name == outcome.method:
            points = _points(method, site.spec, problems_of(site.weight, site.spec), outcome.rank)
            curves.append(RankCurve(outcome.site, outcome.layer, outcome.method, points))
    return tuple(curves)


def _points(
    method: Decomposition, spec: LayerSpec, problems: Sequence[Problem], chosen: tuple[int, ...]
) -> tuple[RankPoint, ...]:
    ranks = {Ratio(share).choose(method, spec, tuple(problems)) for share in _SHARES} | {chosen}
    points = [
        RankPoint(
            rank,
            method.form(spec, rank).macs / spec.macs,
            _least_error(method, problems, rank),
            rank == chosen,
        )
        for rank in ranks
        if rank is not None and len(rank) == len(chosen)
    ]
    return tuple(sorted(points, key=lambda point: (point.cost, point.rank)))


def _least_error(method: Decomposition, problems: Sequence[Problem], rank: tuple[int, ...]) -> float:
    lost, power = 0.0, 0.0
    for problem in problems:
        spectra = [spectrum.singular_values.double().square() for spectrum in method.spectra(problem)]
        kept = rank if len(rank) == len(spectra) else rank[:1] * len(spectra)
        lost += max(float(values[r:].sum()) for values, r in zip(spectra, kept, strict=True))
        power += problem.power
    return math.sqrt(lost / power) if power else 0.0
