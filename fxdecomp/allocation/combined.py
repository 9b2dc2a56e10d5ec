"""Places: layers that are reduced together have one menu, beside those of single layers in a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fxdecomp.allocation.allocate import allocate
from fxdecomp.allocation.candidates import Candidate, frontier
from fxdecomp.decompositions.factorising import Task, weight_refusal
from fxdecomp.errors import BudgetError
from fxdecomp.policy.budgets import Budget, Counted
from fxdecomp.sites import Site, Survey

NOTHING = Candidate(None, (), 0.0, 0, 0)


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Layers that are reduced together.

    Attributes:
        name: By which the place is known.
        layers: The layers, which are in no other place.
        options: What may be done to all of them at once; errors are damages at the network's output.
    """

    name: str
    layers: tuple[Site, ...]
    options: tuple[Candidate, ...]

    def menu(
        self,
        menus: Mapping[str, Sequence[Candidate]],
        sensitivity: Mapping[str, float],
        cost: type[Budget],
    ) -> tuple[Candidate, ...]:
        """The place as it is, and the frontier of its layers' own chains and its options.

        Args:
            menus: The candidates of layers, of which those that have none stay as they are; where they are
                timed, all layers have some.
            sensitivity: Damage per unit of error at a layer.
            cost: What the frontier is about.
        """
        whole = [menus[site.name][0].time_s for site in self.layers if site.name in menus]
        time_s = sum(filter(None, whole)) if cost.is_timed else None
        dense = Candidate(None, (), 0.0, *sums(self.layers), time_s)
        combined = together(self.layers, menus, sensitivity, cost)
        best = frontier([*combined, *self.options], cost)
        return (dense, *(each for each in best if each.method is not None))


def together(
    layers: Sequence[Site],
    menus: Mapping[str, Sequence[Candidate]],
    sensitivity: Mapping[str, float],
    cost: type[Budget],
    beside: Sequence[Candidate] = (NOTHING,),
) -> list[Candidate]:
    """The frontier of all combinations of some layers' candidates; errors are damages.

    Args:
        layers: The layers.
        menus: Their candidates; a layer that has none stays as it is.
        sensitivity: Damage per unit of error at a layer.
        cost: What the frontier is about.
        beside: What is combined with them; where it has a method, its method and rank stay.
    """
    combined = list(beside)
    for site in layers:
        own = menus.get(site.name) or (Candidate(None, (), 0.0, site.macs, site.params),)
        weight = sensitivity.get(site.name, 0.0)
        found = [
            Candidate(
                a.method or ("chains" if b.method else None),
                a.rank,
                a.error + weight * b.error,
                a.macs + b.macs,
                a.params + b.params,
                None if b.time_s is None else (a.time_s or 0.0) + b.time_s,
            )
            for a in combined
            for b in own
        ]
        combined = frontier(found, cost)
    return combined


@dataclass(frozen=True, slots=True)
class Totals:
    """What a network costs.

    Attributes:
        fixed: All but the layers that have menus, and those in places.
        dense: All of it.
    """

    fixed: float
    dense: float


def counted(
    cost: type[Budget], found: Survey, places: Sequence[Place], menus: Mapping[str, Sequence[Candidate]]
) -> Totals:
    """The totals of what can be counted.

    Args:
        cost: What is counted.
        found: Everything in the network.
        places: The places.
        menus: The candidates of single layers.
    """
    everything: list[Counted] = [*found.sites, *found.skipped, *found.others]
    dense = sum(map(cost.cost_of, everything))
    open_ = menus.keys() | {site.name for place in places for site in place.layers}
    fixed = dense - sum(cost.cost_of(site) for site in found.sites if site.name in open_)
    return Totals(fixed, dense)


def choose(
    budget: Budget,
    places: Sequence[Place],
    menus: Mapping[str, Sequence[Candidate]],
    sensitivity: Mapping[str, float],
    totals: Totals,
    *,
    slack: float = 1.0,
) -> dict[str, Candidate]:
    """What serves a budget at each place, by its name; nothing where the budget cannot be met.

    Args:
        budget: What may be spent.
        places: The places.
        menus: The candidates of single layers.
        sensitivity: Damage at the network's output per unit of error at them.
        totals: What the network costs.
        slack: How many times as much it may cost.
    """
    cost = type(budget)
    inside = {site.name for place in places for site in place.layers}
    joined = {place.name: place.menu(menus, sensitivity, cost) for place in places}
    joined |= {name: tuple(menu) for name, menu in menus.items() if name not in inside}
    weights = dict.fromkeys(joined, 0.0) | dict(sensitivity) | {place.name: 1.0 for place in places}
    fixed, dense = totals.fixed, totals.dense
    try:
        limit = slack * budget.limit(dense)
        chosen = allocate(joined, budget, fixed=fixed, dense=dense, limit=limit, sensitivity=weights).chosen
    except BudgetError:
        return {}
    return {place.name: chosen[place.name] for place in places}


def sums(layers: Sequence[Site]) -> tuple[int, int]:
    """Multiply-accumulates and parameters of some layers."""
    return sum(site.macs for site in layers), sum(site.params for site in layers)


def is_open(task: Task) -> bool:
    """Whether a layer's rank is left to the budget."""
    return task.rank is None and weight_refusal(task.weight, task.specs[0]) is None
