"""From a budget to the widths that a policy leaves open: fewer inner channels against chains of these layers.

A place, the layers that share an axis, has one menu: the frontier of all combinations of its layers' chains,
and the layers with fewer channels between them. Of places that have a layer in common the one that takes most
is considered. What the solver narrows stays so; then the budget is spent anew, on all layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch.fx import GraphModule

from fxdecomp.allocation.candidates import Candidate, question_of, task_of
from fxdecomp.allocation.combined import Place, choose, is_open, sums
from fxdecomp.allocation.planning import rank_step
from fxdecomp.allocation.site_work import SiteWork, Workers
from fxdecomp.calibration.collecting import collect
from fxdecomp.calibration.moments import Moments
from fxdecomp.fitting.removal import removal_errors
from fxdecomp.graphs.records import record_of
from fxdecomp.places.coupling import Coupling, Couplings
from fxdecomp.policy import Policy
from fxdecomp.policy.rules import AUTO
from fxdecomp.sites import Survey, survey

_LEAST = 1 / 8
"""Share of the channels that stays at least."""

_MOST_WIDTHS = 16
"""Widths of one place that are considered."""

_NARROWED = "width"


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
    open_ = {name: task for name, task in tasks.items() if task is not None and is_open(task)}
    needed = {*open_, *(each.consumer.name for each in couplings)}
    sensitivity = work.sensitivity(needed, workers.progress) if couplings else None
    if sensitivity is None:
        return {}
    step, cost = policy.multiple_of or rank_step(), type(policy.budget)
    questions = {name: question_of(task, step, cost) for name, task in open_.items()}
    menus = work.menus(questions, workers)
    places = _places(gm, couplings, work, step, sensitivity)
    chosen = choose(policy.budget, found, places, menus, sensitivity)
    return {name: pick.rank[0] for name, pick in chosen.items() if pick.method == _NARROWED}


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


def _places(
    gm: GraphModule,
    couplings: Sequence[Coupling],
    work: SiteWork,
    step: int,
    sensitivity: Mapping[str, float],
) -> list[Place]:
    """The places, with what each loses at each width: of the reader's output."""
    assert work.calibration is not None  # else there are no couplings; narrows the type
    moments: dict[str, tuple[Moments, ...]] = {}
    for some in collect(gm, [each.consumer for each in couplings], work.calibration):
        moments |= some
    places = []
    for each in couplings:
        reader, channels = each.consumer, each.producers[0].spec.out_channels
        least = max(1, math.ceil(_LEAST * channels))
        errors = removal_errors(reader.weight, moments[reader.name][0], least)
        stride = step * max(1, math.ceil(channels / (step * _MOST_WIDTHS)))
        options = []
        for width in range(channels - channels % stride, least - 1, -stride):
            if width < channels:
                damage = sensitivity[reader.name] * errors[channels - width]
                counts = (round(width / channels * total) for total in sums(each.layers))
                options.append(Candidate(_NARROWED, (width,), damage, *counts))
        places.append(Place(each.producers[0].name, each.layers, tuple(options)))
    return places
