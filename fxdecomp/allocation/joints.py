"""Which layers share their input, as a policy wants it, and how much an error of each of them matters.

Each part of a joint layer is scaled by `c = sqrt(s / p)`, with `s` its sensitivity and `p` the power of its
output: then the squared error of all, of which a decomposition loses the least, is the damage that all do.
Where no sensitivities are known, relative errors count alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from fxdecomp.allocation.candidates import Candidate, candidates, question_of, task_of
from fxdecomp.allocation.combined import Place, choose, counted, is_open, together
from fxdecomp.allocation.planning import rank_step
from fxdecomp.allocation.site_work import SiteWork
from fxdecomp.allocation.workers import Workers
from fxdecomp.calibration.moments import Moments
from fxdecomp.decompositions import problems_of
from fxdecomp.decompositions.factorising import Task, weight_refusal
from fxdecomp.graphs.records import Joint, Record, record_of
from fxdecomp.graphs.replacing import Replacer
from fxdecomp.outcomes import Applied
from fxdecomp.places.shared_inputs import ALONE as READ_BY_ONE
from fxdecomp.places.shared_inputs import Readers, stacked
from fxdecomp.policy import Policy
from fxdecomp.policy.rules import AUTO, INPUT, Selection
from fxdecomp.sites import Site, survey

_SHARED = "shared"
"""The method of a candidate whose rank says which layers share: their places in the group."""

_MOMENTS = "moments"
"""The work that gives layers' moments, which are no more kept than the layers that they belong to."""

_TIMED = "the times are of networks in which layers that share their input are one, but for the dense one"

_FEW = 4
"""Layers on one tensor of which any two or more are tried together."""

_MOST_INPUTS = 1024
"""Size of that tensor up to which they are: a try costs its third power."""

_LEAST = 0.01
"""Share of the largest weight of a part that every part has: scales stay near each other, and exact."""


def joints_of(policy: Policy, work: SiteWork, workers: Workers) -> tuple[tuple[Joint, ...], tuple[str, ...]]:
    """The layers that share their input, and sentences about those that were to and do not.

    Args:
        policy: Says which layers are to.
        work: Knows the layers' moments and sensitivities.
        workers: Do what has still to be done.
    """
    groups, reasons = groups_of(policy, work, INPUT)
    sites = [site for group in groups for site in group]
    tasks = {site.name: task for site in sites if (task := task_of(site, policy)) is not None}
    power = work.each("power", power_of, tasks, workers)
    sensitivity = work.sensitivity(power.keys(), workers.progress) if power else None
    joints = [joint_of(group, power, sensitivity) for group in groups]
    is_timed = policy.budget is not None and policy.budget.is_timed
    timed = (_TIMED,) if joints and is_timed else ()
    return tuple(joints), (*_notes(reasons), *timed)


def worth_sharing(policy: Policy, work: SiteWork, workers: Workers) -> tuple[str, ...]:
    """The layers that had better share their input under a budget; none where no real inputs tell.

    Nor are there any in a network that was transformed before. Of some that read the same all may share, or
    those that need the same of it, the others having chains of their own.

    Args:
        policy: With a budget of what is counted, and open shares.
        work: Knows the layers' candidates and sensitivities.
        workers: Do what has still to be done.
    """
    assert policy.budget is not None
    earlier = record_of(work.gm)
    if not work.tells_sensitivity or work.is_made_up or (earlier is not None and earlier.outcomes):
        return ()
    found = survey(work.gm)
    tasks = _open(policy, found.sites)
    groups = [each for each in groups_of(policy, work, AUTO)[0] if tasks.keys() >= {s.name for s in each}]
    sensitivity = work.sensitivity(tasks, workers.progress) if groups else None
    if sensitivity is None:
        return ()
    step, cost = policy.multiple_of or rank_step(), type(policy.budget)
    questions = {name: question_of(task, step, cost) for name, task in tasks.items()}
    menus = work.menus(questions, workers)
    grouped = {site.name: tasks[site.name] for group in groups for site in group}
    power = work.each("power", power_of, grouped, workers)
    moments = work.each(_MOMENTS, moments_of, grouped, workers)
    places = []
    for group in groups:
        options: list[Candidate] = []
        for sharing in _subsets(group):
            sites = [group[index] for index in sharing]
            scales = joint_of(sites, power, sensitivity).scales
            spec, weight, bias = stacked(sites, scales)
            problems = problems_of(weight, spec, moments[sites[0].name])
            question = replace(
                questions[sites[0].name],
                specs=(spec,),
                weight=weight,
                bias=0 if bias is None else bias.numel(),
                problems=problems,
            )
            matters = sum(sensitivity[site.name] for site in sites)
            joint = [
                replace(each, method=_SHARED, rank=sharing, error=matters * each.error)
                for each in candidates(question)
                if each.method
            ]
            others = [site for index, site in enumerate(group) if index not in sharing]
            options += together(others, menus, sensitivity, cost, joint)
        places.append(Place(group[0].name, group, tuple(options)))
    totals = counted(cost, found, places, menus)
    chosen = choose(policy.budget, places, menus, sensitivity, totals)
    picks = ((place, chosen[place.name]) for place in places if place.name in chosen)
    return tuple(
        place.layers[index].name for place, pick in picks if pick.method == _SHARED for index in pick.rank
    )


def _subsets(group: Sequence[Site]) -> list[tuple[int, ...]]:
    """Which layers of a group are tried together: all, and where that is quick any of few."""
    everyone, spec = tuple(range(len(group))), group[0].spec
    sizes = range(2, len(group))
    if len(group) > _FEW or not spec.is_pointwise or spec.in_channels > _MOST_INPUTS:
        sizes = range(0)
    return [each for size in sizes for each in itertools.combinations(everyone, size)] + [everyone]


def _open(policy: Policy, sites: Iterable[Site]) -> dict[str, Task]:
    """The layers whose ranks are left to a budget."""
    tasks = {site.name: task_of(site, policy) for site in sites}
    return {name: task for name, task in tasks.items() if task is not None and is_open(task)}


def groups_of(policy: Policy, work: SiteWork, share: str) -> tuple[list[tuple[Site, ...]], dict[str, str]]:
    """The layers of which a policy says this, as far as they can share; for others the reason.

    Args:
        policy: Says what each layer is to share.
        work: Holds the graph.
        share: What is said of the layers that are looked for.
    """
    gm, record = work.gm, record_of(work.gm) or Record()
    stages = {s for o in record.outcomes if isinstance(o, Applied) for s in o.stage_names}
    changed = {row.site for row in record.widths if row.is_changed}
    sites, replacer = survey(gm).sites, Replacer(gm)
    wanted: dict[str, Selection] = {}
    reasons: dict[str, str] = {}
    for site in sites:
        if site.name in stages or policy.share_of(site.name) != share:
            continue
        selection, refusal = policy.select(site.name), weight_refusal(site.weight, site.spec)
        if selection is None:
            reasons[site.name] = "the policy leaves it alone"
        elif refusal is not None:
            reasons[site.name] = str(refusal.reason)
        elif site.name in changed:
            reasons[site.name] = "its width is another one"
        elif not replacer.keeps_name(site):
            reasons[site.name] = "something else uses its bias, or stands under its name"
        else:
            wanted[site.name] = selection
    groups, others = Readers(gm, sites).groups(wanted)
    return groups, reasons | others


def joint_of(
    group: Sequence[Site], power: Mapping[str, float], sensitivity: Mapping[str, float] | None
) -> Joint:
    """Layers with the scales of their parts, the largest of which is 1."""
    names = tuple(site.name for site in group)
    matters = [1.0 if sensitivity is None else sensitivity[name] for name in names]
    most, loudest = max(matters) or 1.0, max(power[name] for name in names)
    scales = []
    for name, matter in zip(names, matters, strict=True):
        scales.append((max(matter / most, _LEAST) / max(power[name] / loudest, _LEAST**2)) ** 0.5)
    return Joint(names, tuple(scale / max(scales) for scale in scales))


@torch.no_grad()
def power_of(task: Task) -> float:
    """The variance of a layer's output, or the squares of its weight where no moments are known."""
    return sum(each.power for each in task.problems or problems_of(task.weight, task.specs[0]))


def moments_of(task: Task) -> tuple[Moments, ...] | None:
    """The moments of a layer's input, None where none are known."""
    known = [each.moments for each in task.problems or ()]
    moments = tuple(each for each in known if each is not None)
    return moments if moments and len(moments) == len(known) else None


def _notes(reasons: Mapping[str, str]) -> tuple[str, ...]:
    """Why layers share nothing; those that nobody else could share with in one sentence."""
    lonely = [name for name, reason in reasons.items() if reason.startswith(READ_BY_ONE)]
    notes = [f"{name} shares no input: {reason}" for name, reason in reasons.items() if name not in lonely]
    if lonely:
        notes.insert(0, f"{READ_BY_ONE} the inputs of {', '.join(lonely)}: these share them with none")
    return tuple(notes)
