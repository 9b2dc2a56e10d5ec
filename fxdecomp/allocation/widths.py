"""From a budget to the widths that a policy leaves open: fewer inner channels against chains of these layers.

A place, the layers that share an axis, has one menu: the frontier of all combinations of its layers' chains,
and of these with each number of channels between them. A chain of a layer that has fewer is taken to lose
what that of the whole layer loses at the same ranks. Of places that have a layer in common the one that takes
most is considered. What the solver narrows stays so; then the budget is spent anew, on all layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch.fx import GraphModule

from fxdecomp.allocation.candidates import Candidate, question_of, task_of
from fxdecomp.allocation.combined import Place, Totals, choose, counted, is_open, sums
from fxdecomp.allocation.counted_widths import with_chains
from fxdecomp.allocation.heads import LEAST, NARROWED, head_places
from fxdecomp.allocation.planning import rank_step
from fxdecomp.allocation.site_work import SiteWork
from fxdecomp.allocation.timed import LatencyPlanner
from fxdecomp.allocation.timed_widths import priced
from fxdecomp.allocation.workers import Workers
from fxdecomp.calibration.collecting import collect
from fxdecomp.calibration.moments import Moments
from fxdecomp.fitting.removal import removal_errors
from fxdecomp.graphs.records import record_of
from fxdecomp.places.coupling import Coupling
from fxdecomp.places.heads import Heads
from fxdecomp.places.narrowing import Narrowings, fitted_layers
from fxdecomp.policy import Latency, Policy
from fxdecomp.policy.rules import AUTO
from fxdecomp.sites import Survey, survey

_MOST_WIDTHS = 16
"""Widths of one place that are considered."""

_SLACK = 1.5
"""Chains of narrower layers lose less than those of whole ones, so that wider ones are tried as well."""


def found_widths(
    policy: Policy, gm: GraphModule, work: SiteWork, workers: Workers
) -> tuple[dict[str, int], ...]:
    """The widths that serve a budget, by layer; none where too few real inputs tell what an error does.

    Nor are there any in a network that was transformed before. There may be several answers: where heads and
    others are open, for either alone and for both; and for a budget of `_SLACK` times as much, which leaves
    more to the chains of the narrower layers.

    Args:
        policy: With a budget, and open widths.
        gm: The network, its BatchNorms folded.
        work: Knows the layers' candidates and sensitivities.
        workers: Do what has still to be done.
    """
    assert policy.budget is not None
    earlier = record_of(gm)
    if not work.tells_sensitivity or work.is_made_up or (earlier is not None and earlier.outcomes):
        return ()
    found = survey(gm)
    apart = _apart(policy, gm, found, work)
    couplings = [each for each in apart if isinstance(each, Coupling)]
    heads = [each for each in apart if isinstance(each, Heads)]
    tasks = {site.name: task_of(site, policy) for site in found.sites}
    open_ = {name: task for name, task in tasks.items() if task is not None and is_open(task)}
    needed = {*open_, *(each.consumer.name for each in couplings)}
    sensitivity = work.sensitivity(needed, workers.progress) if apart else None
    if sensitivity is None:
        return ()
    step, cost = policy.multiple_of or rank_step(), type(policy.budget)
    questions = {name: question_of(task, step, cost) for name, task in open_.items()}
    menus = work.menus(questions, workers)
    moments = _moments(gm, apart, work)
    inner = _places(couplings, moments, step, sensitivity)
    mixed = head_places(gm, heads, moments, work, workers.progress)
    layers = {each.producers[0].name: each for each in apart}
    timed: Totals | None = None
    if isinstance(policy.budget, Latency):
        narrowing = {place: layers[place.name] for place in inner + mixed}
        with LatencyPlanner(gm, found.sites, policy.budget, {}) as planner:
            known = priced(planner, questions, menus, narrowing, workers.progress)
        menus, timed = known.menus, known.totals
        inner, mixed = ([known.places[each.name] for each in places] for places in (inner, mixed))
    else:
        inner, mixed = (
            [with_chains(each, layers[each.name], menus, sensitivity, cost) for each in places]
            for places in (inner, mixed)
        )
    answers: list[dict[str, int]] = []
    for places, slack in ((inner, 1.0), (mixed, 1.0), (inner + mixed, 1.0), (inner + mixed, _SLACK)):
        if not places:
            continue
        totals = timed or counted(cost, found, places, menus)
        chosen = choose(policy.budget, places, menus, sensitivity, totals, slack=slack)
        answer = {name: pick.rank[0] for name, pick in chosen.items() if pick.method == NARROWED}
        if answer and answer not in answers:
            answers.append(answer)
    return tuple(answers)


def _apart(policy: Policy, gm: GraphModule, found: Survey, work: SiteWork) -> list[Coupling | Heads]:
    """The places with open widths, none of which has a layer in common with another."""
    known = Narrowings(gm, found.sites)
    wanted = [known.of(site) for site in found.sites if policy.width_of(site.name) == AUTO]
    places = [each for each in wanted if isinstance(each, Coupling | Heads)]
    places = [each for each in places if all(map(work.is_fitted, fitted_layers(each)))]
    places.sort(key=lambda each: -sums(each.layers)[0])
    taken: set[str] = set()
    chosen = []
    for place in places:
        names = {site.name for site in place.layers}
        if taken.isdisjoint(names):
            taken |= names
            chosen.append(place)
    return chosen


def _moments(gm: GraphModule, places: Sequence[Coupling | Heads], work: SiteWork) -> dict[str, Moments]:
    """Of the inputs of all layers that are fitted."""
    assert work.calibration is not None  # else there are no places; narrows the type
    moments: dict[str, Moments] = {}
    for some in collect(gm, [site for each in places for site in fitted_layers(each)], work.calibration):
        moments |= {name: parts[0] for name, parts in some.items()}
    return moments


def _places(
    couplings: Sequence[Coupling],
    moments: Mapping[str, Moments],
    step: int,
    sensitivity: Mapping[str, float],
) -> list[Place]:
    """The places, with what each loses at each width: of the reader's output."""
    places = []
    for each in couplings:
        reader, channels = each.consumer, each.producers[0].spec.out_channels
        least = max(1, math.ceil(LEAST * channels))
        errors = removal_errors(reader.weight, moments[reader.name], least)
        stride = step * max(1, math.ceil(channels / (step * _MOST_WIDTHS)))
        options = []
        for width in range(channels - channels % stride, least - 1, -stride):
            if width < channels:
                damage = sensitivity[reader.name] * errors[channels - width]
                counts = (round(width / channels * total) for total in sums(each.layers))
                options.append(Candidate(NARROWED, (width,), damage, *counts))
        places.append(Place(each.producers[0].name, each.layers, tuple(options)))
    return places
