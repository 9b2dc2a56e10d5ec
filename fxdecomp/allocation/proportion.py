"""With data, without a budget: layers whose loss at the outputs is out of proportion to what they save.

A budget weighs layers against each other by itself; one method and rank for all of them does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fxdecomp.allocation.site_work import SiteWork
from fxdecomp.decompositions.factorising import Solution
from fxdecomp.progress import Progress
from fxdecomp.reasons import Reason, Refusal
from fxdecomp.sites import Site

EXAMPLES = 8
"""Inputs that are run once for each layer: a factor of `TIMES` is told by a few."""

LEAST_LOSS = 0.02
"""A loss of less than this share of the outputs' signal is let pass."""

TIMES = 5
"""How much larger than its share of the savings a layer's share of the loss may be."""


def out_of_proportion(
    sites: Sequence[Site], results: Mapping[str, Solution | Refusal], work: SiteWork, progress: Progress
) -> dict[str, Refusal]:
    """Why some of the layers had better stay as they are, by name.

    The loss of a layer is its sensitivity times its chain's error on the calibration.

    Args:
        sites: The layers in question.
        results: Their chains, by name, and what became of others.
        work: Knows how much errors at them matter.
        progress: Told of every layer.
    """
    solutions = {site.name: each for site in sites if isinstance(each := results[site.name], Solution)}
    sensitivity = work.sensitivity(solutions.keys(), progress, EXAMPLES)
    if sensitivity is None or len(solutions) < 2:
        return {}
    loss = {name: sensitivity[name] * (each.output_error or 0.0) for name, each in solutions.items()}
    saved = {site.name: site.macs - solutions[site.name].count_at(site.specs).macs for site in sites}
    all_lost, all_saved = sum(loss.values()), max(sum(saved.values()), 1)
    found = {}
    for name, lost in loss.items():
        share, saving = lost / all_lost if all_lost else 0.0, saved[name] / all_saved
        if lost > LEAST_LOSS and share > TIMES * saving:
            detail = (
                f"{share:.1%} of what all layers lose, {saving:.1%} of what they save; a rule may name it"
            )
            found[name] = Refusal(Reason.OUT_OF_PROPORTION, detail)
    return found
