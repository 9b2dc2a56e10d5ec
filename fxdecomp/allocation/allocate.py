"""`allocate`: the candidates of many layers and a budget, to the choice at each layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fxdecomp.allocation.candidates import Candidate
from fxdecomp.allocation.solver import Menu, least_cost, solve
from fxdecomp.errors import BudgetError
from fxdecomp.policy.budgets import Budget

WITHIN = 0.01
"""A choice that stays further than this below the budget is remarked upon."""

BEARABLE = 0.5
"""A choice that is predicted to keep less of the signal than this is warned of."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """What was chosen.

    Attributes:
        chosen: One candidate per layer, by name.
        cost: What the whole network then costs.
        dense: What the dense network costs.
        is_near: Whether the cost is within `WITHIN` of the budget, or nothing had to be changed.
        notes: Sentences for the reader of the report.
    """

    chosen: Mapping[str, Candidate]
    cost: float
    dense: float
    is_near: bool
    notes: tuple[str, ...]


def damage(error: float) -> float:
    """What a squared relative error does to the signal that passes: `-log(1 - e^2)`.

    Shares of kept signal multiply along a network, so that their logarithms add up. It is the fallback where
    no sensitivity has been measured: every layer counts alike.
    """
    return -math.log(max(1.0 - error, 1e-6))


def allocate(
    menus: Mapping[str, Sequence[Candidate]],
    budget: Budget,
    *,
    fixed: float = 0.0,
    dense: float,
    limit: float | None = None,
    sensitivity: Mapping[str, float] | None = None,
) -> Allocation:
    """Choose a candidate for every layer: the least predicted damage within the budget.

    Args:
        menus: The candidates of each layer, the dense one first.
        budget: What is counted, and how much of it there may be.
        fixed: What all other layers cost.
        dense: What the dense network costs.
        limit: Another limit than the budget's own, where measurements have corrected it.
        sensitivity: Damage at the network's output per unit of squared error, by layer; None for all alike.

    Raises:
        BudgetError: No choice meets the budget.
    """
    limit = budget.limit(dense) if limit is None else limit
    table = [_menu(name, options, budget, sensitivity) for name, options in menus.items()]
    chosen = solve(table, limit - fixed)
    if chosen is None:
        least = fixed + least_cost(table)
        raise BudgetError(
            f"{budget} cannot be met: the smallest candidates of all layers together take "
            f"{budget.amount(least)} of {budget.amount(dense)} ({least / dense:.1%}); raise the budget, "
            "or let more layers and methods take part",
            least / dense,
        )
    cost = fixed + chosen.cost
    picks = {
        name: options[index] for (name, options), index in zip(menus.items(), chosen.options, strict=True)
    }
    note = (
        f"budget {budget}: {budget.amount(cost)} of {budget.amount(dense)} {budget.unit} ({cost / dense:.2%})"
    )
    if sensitivity is not None:  # errors of weights alone say next to nothing of the outputs
        kept = max(0.0, 1 - chosen.damage)
        note += f"; predicted to keep {kept:.0%} of the output's signal"
        if kept < BEARABLE:
            note += ", which hardly any network bears: search(max_drop=...) finds what this one does"
    near = cost >= limit * (1 - WITHIN) or not any(pick.method for pick in picks.values())
    if not near:
        note += f"; the ranks considered come no nearer to {budget.amount(limit)} without more damage"
    return Allocation(picks, cost, dense, near, (note,))


def _menu(
    name: str, options: Sequence[Candidate], cost: Budget, sensitivity: Mapping[str, float] | None
) -> Menu:
    costs = np.array([cost.cost_of(each) for each in options], dtype=np.float64)
    if sensitivity is None:
        damages = np.array([damage(each.error) for each in options])
    else:
        damages = np.array([sensitivity[name] * each.error for each in options])
    return Menu(costs, damages)
