"""How little a network may take: what the smallest chains of all layers cost, from geometry alone."""

from __future__ import annotations

from torch.fx import GraphModule

from fxdecomp.allocation.candidates import methods_of
from fxdecomp.decompositions import refusal_of
from fxdecomp.decompositions.factorising import forms_of, weight_refusal
from fxdecomp.policy import Policy
from fxdecomp.sites import Site, survey


def least_macs_share(gm: GraphModule, policy: Policy) -> float:
    """A bound of the share of its multiply-accumulates that a budget can leave of a network.

    No budget below it can be met; one above it may still not be, as not every rank is considered.

    Args:
        gm: The network.
        policy: Says which layers take part, with which methods.
    """
    found = survey(gm)
    left = sum(row.macs for row in (*found.skipped, *found.others))
    dense = left + sum(site.macs for site in found.sites)
    least = left + sum(_least_macs(site, policy) for site in found.sites)
    return least / dense if dense else 1.0


def _least_macs(site: Site, policy: Policy) -> int:
    selection = policy.select(site.name)
    if selection is None or weight_refusal(site.weight, site.spec) is not None:
        return site.macs
    least = [site.macs]
    for method in methods_of(selection.method, site.spec):
        if refusal_of(method, site.specs) is None:
            step = policy.multiple_of or 1
            rank = tuple(min(step, limit) for limit in method.rank_limits(site.spec.per_group))
            least.append(sum(form.macs for form in forms_of(method, rank, site.specs)))
    return max(min(least), round(selection.floor * site.macs))
