"""From a budget to a method and a rank at every layer that the policy leaves to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch.fx import GraphModule

from fxdecomp.allocation.allocate import allocate
from fxdecomp.allocation.candidates import Candidate, Question, question_of
from fxdecomp.allocation.pricing import price
from fxdecomp.allocation.site_work import SiteWork
from fxdecomp.allocation.timed import ABOVE, BELOW, LatencyPlanner, best_attempt
from fxdecomp.allocation.workers import Workers
from fxdecomp.decompositions.factorising import Solution, Task, weight_refusal
from fxdecomp.errors import BudgetError
from fxdecomp.export.machine import machine
from fxdecomp.graphs.timed_plans import TimedCandidate, TimedPlan
from fxdecomp.layers import Count
from fxdecomp.outcomes import Outcome
from fxdecomp.policy import Policy
from fxdecomp.policy.budgets import Budget, Latency
from fxdecomp.ranks import Fixed
from fxdecomp.reasons import UNJUDGED, Reason, Refusal
from fxdecomp.sites import Site

_FINER = 4
"""How much finer the ranks become where none of those considered meets the budget closely."""

_WORTH_SAYING = 0.05
"""Share of the cost in layers that no budget reduces from which on the refusal of a budget names them."""


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """What a budget makes of the layers left to it.

    Attributes:
        tasks: The layers that are decomposed, with the rank that was chosen.
        left: Why the others are left alone.
        notes: Sentences for the reader of the report.
        latency: What was predicted and measured under a budget of time.
    """

    tasks: Mapping[str, Task]
    left: Mapping[str, Refusal]
    notes: tuple[str, ...]
    latency: TimedPlan | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Situation:
    """The network that a budget is for.

    Attributes:
        gm: The graph before any decomposition.
        sites: All layers that could be decomposed.
        settled: What became of the layers whose rank the policy gives.
        others: All else in the network that holds weights.
        gone: What the original took besides: BatchNorms that were folded, widths.
        work: Knows the layers' candidates and sensitivities.
        workers: Do what has still to be done.
    """

    gm: GraphModule
    sites: Sequence[Site]
    settled: Mapping[str, Solution | Refusal]
    others: Sequence[Outcome]
    gone: Count
    work: SiteWork
    workers: Workers

    def menus(self, questions: Mapping[str, Question]) -> dict[str, tuple[Candidate, ...]]:
        """The candidates at every layer."""
        return self.work.menus(questions, self.workers)

    def sensitivity(self, open_: Mapping[str, Task]) -> dict[str, float] | None:
        """Damage at the network's output per unit of error at a layer; None where nothing is known."""
        return self.work.sensitivity(open_, self.workers.progress)


def plan_budget(policy: Policy, tasks: Mapping[str, Task], situation: Situation) -> Planned:
    """Choose methods and ranks within a policy's budget.

    Args:
        policy: With a budget.
        tasks: The layers that are left to the budget.
        situation: The network.

    Raises:
        BudgetError: The budget cannot be met.
    """
    left: dict[str, Refusal] = {}
    for name, task in tasks.items():
        if (refusal := weight_refusal(task.weight, task.specs[0])) is not None:
            left[name] = refusal
    open_ = {name: task for name, task in tasks.items() if name not in left}
    try:
        if isinstance(policy.budget, Latency):
            choice = _timed_choice(policy, policy.budget, open_, situation)
        else:
            choice = _counted_choice(policy, open_, situation)
    except BudgetError as error:
        raise BudgetError(f"{error}{_unjudged(situation.settled)}", error.least_share) from None
    chosen: dict[str, Task] = {}
    for name, task in open_.items():
        pick = choice.picks.get(name)
        if pick is None or pick.method is None:
            left[name] = Refusal(choice.reason if choice.sizes[name] > 1 else Reason.NO_SAVING)
        else:
            chosen[name] = replace(task, method=pick.method, rank=Fixed(pick.rank))
    return Planned(chosen, left, choice.notes, choice.latency)


@dataclass(frozen=True, slots=True, eq=False)
class _Choice:
    """A candidate at every layer, the number of candidates there were, and why layers were left."""

    picks: Mapping[str, Candidate]
    sizes: Mapping[str, int]
    notes: tuple[str, ...]
    reason: Reason = Reason.BUDGET
    latency: TimedPlan | None = None


def _counted_choice(policy: Policy, open_: Mapping[str, Task], situation: Situation) -> _Choice:
    assert policy.budget is not None
    cost = type(policy.budget)
    dense = sum(map(cost.cost_of, (situation.gone, *(each.before for each in situation.others))))
    fixed = sum(cost.cost_of(each.after) for each in situation.others)
    for site in situation.sites:
        dense += cost.cost_of(site)
        if site.name not in open_:
            settled = situation.settled.get(site.name)
            fixed += cost.cost_of(settled.count_at(site.specs) if isinstance(settled, Solution) else site)
    step = policy.multiple_of or rank_step()
    sensitivity = situation.sensitivity(open_)
    while True:
        menus = situation.menus({name: question_of(task, step, cost) for name, task in open_.items()})
        finest = step == 1 or policy.multiple_of is not None
        try:
            found = allocate(menus, policy.budget, fixed=fixed, dense=dense, sensitivity=sensitivity)
        except BudgetError as error:
            if finest:
                unreduced = _unreduced(situation.others, cost, dense)
                raise BudgetError(f"{error}{unreduced}", error.least_share) from None
        else:
            if found.is_near or finest:
                break
        step = max(1, step // _FINER)
    return _Choice(found.chosen, {name: len(menu) for name, menu in menus.items()}, found.notes)


def _timed_choice(
    policy: Policy, budget: Latency, open_: Mapping[str, Task], situation: Situation
) -> _Choice:
    given = {
        name: (result.chain.form.method, result.chain.form.rank)
        for name, result in situation.settled.items()
        if isinstance(result, Solution)
    }
    whole = situation.work.whole
    with LatencyPlanner(situation.gm, situation.sites, budget, given, whole) as planner:
        step = policy.multiple_of or planner.times.good_multiple()
        questions = {name: question_of(task, step, Latency) for name, task in open_.items()}
        untimed = situation.menus(questions)
        menus = price(questions, untimed, planner.times, situation.workers.progress)
        if planner.has_drifted():
            planner.times.forget()
            menus = price(questions, untimed, planner.times, situation.workers.progress)
            planner.has_drifted()
        fixed = planner.fixed_s({name: menu[0].time_s or 0.0 for name, menu in menus.items()})
        try:
            attempts = planner.attempts(menus, fixed, situation.sensitivity(open_))
        except BudgetError as error:
            raise BudgetError(
                "; ".join(filter(None, (str(error), planner.how(None).warning))), error.least_share
            ) from None
        target = planner.target
        best = best_attempt(attempts, target)
        how = planner.how(best)
    sizes = {name: len(menu) for name, menu in menus.items()}
    tried, options = [each.remembered for each in attempts], _timed(menus)
    if best is None:
        note = f"budget {budget}: nothing worth changing, "
        note += (
            f"what was assembled ran at {attempts[0].speedup} of the dense network's speed, not faster "
            "beyond the noise"
            if attempts
            else "no choice of layers was predicted to be faster"
        )
        return _Choice(
            {},
            sizes,
            (note, *how.notes()),
            Reason.NOT_FASTER,
            how.timed_plan(tried, None, options),
        )
    repaired = f", after {len(attempts)} attempts" if len(attempts) > 1 else ""
    missed = "; the budget is missed" if best.share > target * (1 + ABOVE) else ""
    missed = missed or ("; more was taken than was asked for" if best.share < target - 2 * BELOW else "")
    note = (
        f"measured {best.small_s * 1e3:.3f} ms against {best.dense_s * 1e3:.3f} ms of the dense network "
        f"on {budget.provider}, {budget.threads} thread(s): {best.speedup}{repaired}{missed}"
    )
    return _Choice(
        best.allocation.chosen,
        sizes,
        (*best.allocation.notes, note, *how.notes()),
        latency=how.timed_plan(tried, attempts.index(best), options),
    )


def _timed(menus: Mapping[str, Sequence[Candidate]]) -> dict[str, tuple[TimedCandidate, ...]]:
    """What there was to choose from, the layer as it is first."""
    return {
        name: tuple(TimedCandidate(c.method or "", c.rank, c.time_s or 0.0, c.error) for c in menu)
        for name, menu in menus.items()
        if len(menu) > 1
    }


def rank_step() -> int:
    """What ranks are multiples of on this machine: its vector registers hold 16 floats, or 8."""
    return 16 if "avx512f" in machine()["features"] else 8


def _unreduced(others: Sequence[Outcome], cost: type[Budget], dense: float) -> str:
    """What of the cost no budget can reduce, in words; empty where it is little."""
    costs = {outcome.site: cost.cost_of(outcome.after) for outcome in others}
    largest = sorted((name for name in costs if costs[name]), key=lambda name: -costs[name])
    share = sum(costs.values()) / dense
    if share < _WORTH_SAYING:
        return ""
    shown = ", ".join(largest[:3]) + (", ..." if len(largest) > 3 else "")
    return f"; {share:.1%} is in layers that no budget reduces ({shown})"


def _unjudged(settled: Mapping[str, Solution | Refusal]) -> str:
    """What of the network is left alone for want of data, in words; empty where nothing is."""
    names = [name for name, each in settled.items() if isinstance(each, Refusal) and each.reason in UNJUDGED]
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"; {shown}: left alone without calibration unless a rule names them" if names else ""
