"""Chains of layers with fewer channels between them, by what is known of these layers as they are.

A chain of a narrower layer is priced as what it is, and taken to lose what that of the whole layer loses at
the same ranks.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fxdecomp.allocation.candidates import Candidate
from fxdecomp.allocation.combined import Place, together
from fxdecomp.decompositions import method_named
from fxdecomp.layers import LayerSpec
from fxdecomp.places.coupling import Coupling
from fxdecomp.places.heads import Heads
from fxdecomp.places.narrowing import narrower
from fxdecomp.policy.budgets import Budget
from fxdecomp.sites import Site


def with_chains(
    place: Place,
    narrowing: Coupling | Heads,
    menus: Mapping[str, Sequence[Candidate]],
    sensitivity: Mapping[str, float],
    cost: type[Budget],
) -> Place:
    """A place whose layers may be chains as well at each of its widths.

    Args:
        place: With the widths as its options.
        narrowing: The same place in the graph.
        menus: The candidates of layers as they are.
        sensitivity: Damage per unit of error at a layer.
        cost: What the frontier is about.
    """
    options: list[Candidate] = []
    for each in place.options:
        own = {}
        for site in place.layers:
            spec = narrower(narrowing, site, site.spec, each.rank[0])
            own[site.name] = _candidates(site, spec, menus.get(site.name, ()))
        options += together(place.layers, own, sensitivity, cost, [replace(each, macs=0, params=0)])
    return replace(place, options=tuple(options))


def _candidates(site: Site, spec: LayerSpec, menu: Sequence[Candidate]) -> list[Candidate]:
    """Those of a layer that has another geometry now."""
    biases = 0 if site.bias is None else spec.bias_params
    found = [Candidate(None, (), 0.0, spec.macs, spec.params + biases)]
    for each in menu:
        if each.method is None:
            continue
        method = method_named(each.method)
        if all(map(operator.le, each.rank, method.rank_limits(spec))):
            form = method.form(spec, each.rank)
            if form.macs < spec.macs:
                found.append(replace(each, macs=form.macs, params=form.params + spec.bias_params))
    return found
