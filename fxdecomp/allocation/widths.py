"""From a budget to the widths that a policy leaves open: fewer inner channels against chains of these layers.

A place, the layers that share an axis, has one menu: the frontier of all combinations of its layers' chains,
and the layers with fewer channels between them. Of places that have a layer in common the one that takes most
is considered. What the solver narrows stays so; then the budget is spent anew, on all layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch.fx import GraphModule

from fxdecomp.allocation.allocate import allocate
from fxdecomp.allocation.candidates import Candidate, candidates, frontier, question_of, task_of
from fxdecomp.allocation.planning import rank_step
from fxdecomp.allocation.site_work import SiteWork, Workers
from fxdecomp.calibration.collecting import collect
from fxdecomp.calibration.moments import Moments
from fxdecomp.decompositions.factorising import Task, weight_refusal
from fxdecomp.errors import BudgetError
from fxdecomp.fitting.removal import removal_errors
from fxdecomp.graphs.records import record_of
from fxdecomp.places.coupling import Coupling, Couplings
from fxdecomp.policy import Policy
from fxdecomp.policy.budgets import Budget, Counted
from fxdecomp.policy.rules import AUTO
from fxdecomp.sites import Site, Survey, survey

_LEAST = 1 / 8
"""Share of the channels that stays at least."""

_MOST_WIDTHS = 16
"""Widths of one place that are considered."""

_NARROWED = "width"


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    coupling: Coupling
    widths: Mapping[int, float]

    @property
    def name(self) -> str:
        return self.coupling.producers[0].name


def found_widths(policy: Policy, gm: GraphModule, work: SiteWork, workers: Workers) -> dict[str, int]:
    """The widths that serve a budget, by layer; none where too few real inputs tell what an error does.

    Nor are there any in a network that was transformed before.

    Args:
        policy: With a budget of what is counted, and open widths.
        gm: The network, its BatchNorms folded.
        work: Knows the layers' candidates and sensitivities.
        workers: Do what has still to be done.
    """
    assert policy.budget is not None
    earlier = record_of(gm)
    if not work.tells_sensitivity or work.is_made_up or (earlier is not None and earlier.outcomes):
        return {}
    found = survey(gm)
    couplings = _apart(policy, gm, found, work)
    tasks = {site.name: task_of(site, policy) for site in found.sites}
    open_ = {name: task for name, task in tasks.items() if task is not None and _is_open(task)}
    needed = {*open_, *(each.consumer.name for each in couplings)}
    sensitivity = work.sensitivity(needed, workers.progress) if couplings else None
    if sensitivity is None:
        return {}
    step, cost = policy.multiple_of or rank_step(), type(policy.budget)
    places = _with_errors(gm, couplings, work, step)
    questions = {name: question_of(task, step, cost) for name, task in open_.items()}
    menus = work.each("candidates", candidates, questions, workers)
    joined: dict[str, tuple[Candidate, ...]] = {}
    weights = dict(sensitivity)
    inside = {site.name for place in places for site in place.coupling.layers}
    for place in places:
        joined[place.name] = _menu(place, menus, sensitivity, cost)
        weights[place.name] = 1.0
    joined |= {name: menu for name, menu in menus.items() if name not in inside}
    everything: list[Counted] = [*found.sites, *found.skipped, *found.others]
    dense = sum(map(cost.cost_of, everything))
    counted = set(joined) | inside
    fixed = dense - sum(cost.cost_of(site) for site in found.sites if site.name in counted)
    try:
        choice = allocate(joined, policy.budget, fixed=fixed, dense=dense, sensitivity=weights)
    except BudgetError:
        return {}
    return {name: pick.rank[0] for name, pick in choice.chosen.items() if pick.method == _NARROWED}


def _apart(policy: Policy, gm: GraphModule, found: Survey, work: SiteWork) -> list[Coupling]:
    """The places with open widths, none of which has a layer in common with another."""
    known = Couplings(gm, found.sites)
    wanted = [known.of(site) for site in found.sites if policy.width_of(site.name) == AUTO]
    places = [each for each in wanted if isinstance(each, Coupling) and work.is_fitted(each.consumer)]
    places.sort(key=lambda each: -sum(site.macs for site in (*each.producers, each.consumer)))
    taken: set[str] = set()
    chosen = []
    for place in places:
        names = {site.name for site in place.layers}
        if taken.isdisjoint(names):
            taken |= names
            chosen.append(place)
    return chosen


def _with_errors(gm: GraphModule, couplings: Sequence[Coupling], work: SiteWork, step: int) -> list[_Place]:
    """What each place loses at each width, of the reader's output."""
    readers = [each.consumer for each in couplings]
    assert work.calibration is not None  # else there are no places; narrows the type
    moments: dict[str, tuple[Moments, ...]] = {}
    for some in collect(gm, readers, work.calibration):
        moments |= some
    places = []
    for each in couplings:
        channels = each.producers[0].spec.out_channels
        least = max(1, math.ceil(_LEAST * channels))
        errors = removal_errors(each.consumer.weight, moments[each.consumer.name][0], least)
        stride = step * max(1, math.ceil(channels / (step * _MOST_WIDTHS)))
        widths = range(channels - channels % stride, least - 1, -stride)
        places.append(_Place(each, {w: errors[channels - w] for w in widths if w < channels}))
    return places


def _menu(
    place: _Place,
    menus: Mapping[str, Sequence[Candidate]],
    sensitivity: Mapping[str, float],
    cost: type[Budget],
) -> tuple[Candidate, ...]:
    """The place as it is, and the frontier of its chains and widths; errors are damages."""
    dense = Candidate(None, (), 0.0, *_sums(place.coupling.layers))
    combined = [replace(dense, macs=0, params=0)]
    for site in place.coupling.layers:
        own = menus.get(site.name) or (Candidate(None, (), 0.0, site.macs, site.params),)
        weight = sensitivity.get(site.name, 0.0)
        sums = [
            Candidate(
                "chains" if a.method or b.method else None,
                (),
                a.error + weight * b.error,
                a.macs + b.macs,
                a.params + b.params,
            )
            for a in combined
            for b in own
        ]
        combined = frontier(sums, cost)
    reader = place.coupling.consumer
    for width, error in place.widths.items():
        share = width / place.coupling.producers[0].spec.out_channels
        macs, params = (round(share * total) for total in _sums(place.coupling.layers))
        combined.append(Candidate(_NARROWED, (width,), sensitivity[reader.name] * error, macs, params))
    return (dense, *(each for each in frontier(combined, cost) if each.method is not None))


def _sums(layers: Sequence[Site]) -> tuple[int, int]:
    return sum(site.macs for site in layers), sum(site.params for site in layers)


def _is_open(task: Task) -> bool:
    """Whether a layer's rank is left to the budget."""
    return task.rank is None and weight_refusal(task.weight, task.specs[0]) is None
