"""Without data: layers that are left alone because nothing says what an error there does to the outputs.

An error of a layer inside passes through others, which attenuate it; one of a head is the network's own.
A layer of few outputs has few directions, each of which matters.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence

from fxdecomp.decompositions.factorising import weight_refusal
from fxdecomp.outcomes import Outcome
from fxdecomp.reasons import Reason, Refusal
from fxdecomp.sites import Site

FEW_OUTPUTS = 16
"""A layer of fewer output channels is left alone."""

_WORTH_NAMING = 0.1
"""Share of the network's parameters or multiply-accumulates from which on a rule is suggested."""


def unjudged_layers(
    sites: Sequence[Site], heads: Container[str], everything: Collection[Outcome], few: str = ""
) -> dict[str, Refusal]:
    """Why some of the layers are left alone, by name.

    Args:
        sites: The layers in question.
        heads: Names of the layers that no other stands behind.
        everything: All of the network that holds weights, with its cost before any decomposition.
        few: Why the data that there is does not tell, in words; empty where there is none.
    """
    macs = max(sum(each.macs_before for each in everything), 1)
    params = max(sum(each.params_before for each in everything), 1)
    found = {}
    for site in sites:
        if weight_refusal(site.weight, site.spec) is not None:
            continue  # for a reason of its own
        share = max(site.params / params, site.macs / macs)
        named = f"it is {share:.0%} of the network, decomposed where a rule names it"
        detail = "; ".join(filter(None, (few, named if share >= _WORTH_NAMING else "")))
        if site.name in heads:
            found[site.name] = Refusal(Reason.HEAD, detail)
        elif site.spec.out_channels < FEW_OUTPUTS and len(everything) > 1:
            found[site.name] = Refusal(Reason.FEW_OUTPUTS, detail)
    return found
