"""From a budget to a method and a rank at every layer that the policy leaves to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fxdecomp.allocation.allocate import allocate
from fxdecomp.allocation.candidates import Candidate, Question
from fxdecomp.export.machine import machine
from fxdecomp.outcomes import Outcome, Reason
from fxdecomp.passes.factorise import Obstacle, Solution, Task, chain_macs, weight_obstacle
from fxdecomp.policy import Policy
from fxdecomp.ranks import Fixed
from fxdecomp.rules import Selection
from fxdecomp.sites import Site

Answers = Callable[[Mapping[str, Question]], Mapping[str, tuple[Candidate, ...]]]


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """What a budget makes of the layers left to it.

    Attributes:
        tasks: The layers that are decomposed, with the rank that was chosen.
        left: Why the others are left alone.
        notes: Sentences for the reader of the report.
    """

    tasks: Mapping[str, Task]
    left: Mapping[str, Obstacle]
    notes: tuple[str, ...]


def plan_budget(
    policy: Policy,
    tasks: Mapping[str, Task],
    *,
    sites: Sequence[Site],
    settled: Mapping[str, Solution | Obstacle],
    others: Iterable[Outcome],
    answer: Answers,
) -> Planned:
    """Choose methods and ranks within a policy's budget.

    Args:
        policy: With a budget.
        tasks: The layers that are left to the budget.
        sites: All layers that could be decomposed, `tasks` among them.
        settled: What became of the layers whose rank the policy gives.
        others: All other layers of the network.
        answer: Finds the candidates of many layers.

    Raises:
        PolicyError: The budget cannot be met.
    """
    assert policy.budget is not None
    cost = policy.budget.name
    left: dict[str, Obstacle] = {}
    for name, task in tasks.items():
        if (obstacle := weight_obstacle(task.weight, task.specs[0])) is not None:
            left[name] = obstacle
    open_ = {name: task for name, task in tasks.items() if name not in left}
    dense, fixed = _other_costs(others, cost)
    for site in sites:
        dense += site.macs if cost == "macs" else site.params
        if site.name not in open_:
            fixed += _settled_cost(site, settled.get(site.name), cost)
    step = policy.multiple_of or rank_step()
    while True:
        menus = answer({name: _question(task, step, cost) for name, task in open_.items()})
        found = allocate(menus, policy.budget, fixed=fixed, dense=dense)
        if found.is_near or step == 1 or policy.multiple_of:
            break
        step //= 2
    chosen: dict[str, Task] = {}
    for name, pick in found.chosen.items():
        if pick.method is None:
            left[name] = Obstacle(Reason.BUDGET if len(menus[name]) > 1 else Reason.NO_SAVING)
        else:
            selection = Selection(pick.method, Fixed(pick.rank))
            chosen[name] = replace(open_[name], selection=selection)
    return Planned(chosen, left, found.notes)


def rank_step() -> int:
    """What ranks are multiples of on this machine: its vector registers hold 16 floats, or 8."""
    return 16 if "avx512f" in machine()["features"] else 8


def _question(task: Task, step: int, cost: str) -> Question:
    return Question(
        task.site,
        task.specs,
        task.weight,
        0 if task.bias is None else task.bias.numel(),
        task.selection.method,
        step,
        cost,
        require_saving=task.require_saving,
        floor=task.selection.floor,
        moments=task.moments,
    )


def _other_costs(others: Iterable[Outcome], cost: str) -> tuple[float, float]:
    """What the layers outside the plan cost before any decomposition, and now."""
    before = now = 0.0
    for outcome in others:
        before += outcome.macs_before if cost == "macs" else outcome.params_before
        now += outcome.macs_after if cost == "macs" else outcome.params_after
    return before, now


def _settled_cost(site: Site, result: Solution | Obstacle | None, cost: str) -> int:
    if not isinstance(result, Solution):
        return site.macs if cost == "macs" else site.params
    if cost == "macs":
        return chain_macs(result, [call.spec for call in site.calls])
    return sum(weight.numel() for weight in result.weights) + site.params - site.weight.numel()
