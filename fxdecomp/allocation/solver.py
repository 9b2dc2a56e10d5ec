"""The multiple-choice knapsack: one option of every layer, the least damage, within a limit.

    minimise  sum_i d[i, c_i]    subject to  sum_i a[i, c_i] <= limit

Exact up to a relative gap by branch and bound (HiGHS, through `scipy.optimize.milp`). Source: Kellerer,
Pferschy and Pisinger 2004, Knapsack Problems, chapter 11.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, vstack

GAP = 1e-4
"""Relative gap to the optimum at which the search may stop."""

TIME_LIMIT_S = 4.0


@dataclass(frozen=True, slots=True, eq=False)
class Menu:
    """The options of one layer: costs and damages of the same length, option 0 the dense layer."""

    costs: Float[np.ndarray, " n"]
    damages: Float[np.ndarray, " n"]


@dataclass(frozen=True, slots=True)
class Chosen:
    """An option for every layer.

    Attributes:
        options: One index per menu.
        cost: Their sum of costs.
        damage: Their sum of damages.
        bound: No choice within the limit has less damage than this.
    """

    options: tuple[int, ...]
    cost: float
    damage: float
    bound: float


def least_cost(menus: Sequence[Menu]) -> float:
    """The least that any choice costs."""
    return float(sum(menu.costs.min() for menu in menus))


def solve(menus: Sequence[Menu], limit: float, *, time_limit_s: float = TIME_LIMIT_S) -> Chosen | None:
    """Choose one option per menu; None where none is within the limit.

    Lagrangian relaxation gives a choice and a lower bound at once; only if they differ by more than `GAP` is
    the integer programme solved, and the better of both is returned.

    Args:
        menus: The options of each layer.
        limit: The most that all may cost together.
        time_limit_s: For the integer programme.
    """
    if least_cost(menus) > limit:
        return None
    if not menus:
        return Chosen((), 0.0, 0.0, 0.0)
    first = lagrangian(menus, limit)
    if first.damage - first.bound <= GAP * max(first.damage, 1e-300):
        return first
    second = _integer_programme(menus, limit, time_limit_s)
    if second is None:
        return first
    bound = max(first.bound, second.bound)
    best = min((first, second), key=lambda chosen: chosen.damage)
    return Chosen(best.options, best.cost, best.damage, min(bound, best.damage))


def lagrangian(menus: Sequence[Menu], limit: float) -> Chosen:
    """Bisect the price of cost, then spend what is left where it does most good.

    The price's dual value is a lower bound on the damage. Needs `least_cost(menus) <= limit`.
    """
    cheapest = tuple(int(np.lexsort((menu.damages, menu.costs))[0]) for menu in menus)
    best, bound = cheapest, 0.0
    low, high = 0.0, _highest_price(menus)
    for _ in range(100):
        price = (low * high) ** 0.5 if low > 0 else high / 1e12
        picks = tuple(int(np.argmin(menu.damages + price * menu.costs)) for menu in menus)
        cost, damage = _totals(menus, picks)
        bound = max(bound, damage + price * (cost - limit))
        if cost <= limit:
            high = price
            if damage <= _totals(menus, best)[1]:
                best = picks
        else:
            low = price
        if low > 0 and high / low < 1 + 1e-9:
            break
    best = _filled(menus, list(best), limit)
    cost, damage = _totals(menus, best)
    return Chosen(best, cost, damage, min(bound, damage))


def _highest_price(menus: Sequence[Menu]) -> float:
    gaps = [np.diff(np.unique(menu.costs)).min() for menu in menus if len(np.unique(menu.costs)) > 1]
    worst = max(float(menu.damages.max()) for menu in menus)
    return 2 * max(worst, 1e-300) / float(min(gaps)) if gaps else 1.0


def _filled(menus: Sequence[Menu], picks: list[int], limit: float) -> tuple[int, ...]:
    """Better options while they fit, the best damage per cost first."""
    room = limit - _totals(menus, picks)[0]
    while True:
        best, gain = None, 0.0
        for index, menu in enumerate(menus):
            more = menu.costs - menu.costs[picks[index]]
            less = menu.damages[picks[index]] - menu.damages
            rate = np.where((more <= room) & (less > 0), less / np.maximum(more, 1e-12), 0.0)
            option = int(np.argmax(rate))
            if rate[option] > gain:
                best, gain = (index, option), float(rate[option])
        if best is None:
            return tuple(picks)
        index, option = best
        room -= menus[index].costs[option] - menus[index].costs[picks[index]]
        picks[index] = option


def _integer_programme(menus: Sequence[Menu], limit: float, time_limit_s: float) -> Chosen | None:
    costs = np.concatenate([menu.costs for menu in menus])
    damages = np.concatenate([menu.damages for menu in menus])
    scale, worst = max(float(np.abs(costs).max()), 1e-300), max(float(damages.max()), 1e-300)
    sizes = [len(menu.costs) for menu in menus]
    rows = np.repeat(np.arange(len(menus)), sizes)
    once = csr_array((np.ones(len(costs)), (rows, np.arange(len(costs)))))
    matrix = vstack([once, csr_array(costs[None] / scale)])
    ones = np.ones(len(menus))
    found = milp(
        damages / worst,
        integrality=np.ones(len(costs)),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(matrix, np.append(ones, -np.inf), np.append(ones, limit / scale)),
        options={"mip_rel_gap": GAP, "time_limit": time_limit_s},
    )
    if found.x is None:
        return None
    starts = np.cumsum([0, *sizes[:-1]])
    options = tuple(
        int(np.argmax(found.x[start : start + size])) for start, size in zip(starts, sizes, strict=True)
    )
    cost, damage = _totals(menus, options)
    if cost > limit * (1 + 1e-12):  # the solver's tolerance let it through
        return None
    dual = getattr(found, "mip_dual_bound", None)
    return Chosen(options, cost, damage, 0.0 if dual is None else float(dual) * worst)


def _totals(menus: Sequence[Menu], options: Sequence[int]) -> tuple[float, float]:
    cost = sum(float(menu.costs[option]) for menu, option in zip(menus, options, strict=True))
    damage = sum(float(menu.damages[option]) for menu, option in zip(menus, options, strict=True))
    return cost, damage
