"""With data, without a budget: layers whose loss at the outputs is out of proportion to what they save.

A budget weighs layers against each other by itself; one method and rank for all of them does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch.fx import GraphModule

from fxdecomp.allocation.sensitivity import measure_sensitivity, some_of
from fxdecomp.calibration import Calibration
from fxdecomp.decompositions import method_named
from fxdecomp.decompositions.factorising import Solution, forms_of
from fxdecomp.outcomes import Reason, Refusal
from fxdecomp.progress import Progress
from fxdecomp.sites import Site

EXAMPLES = 8
"""Inputs that are run once for each layer: a factor of `TIMES` is told by a few."""

LEAST_LOSS = 0.02
"""A loss of less than this share of the outputs' signal is let pass."""

TIMES = 5
"""How much larger than its share of the savings a layer's share of the loss may be."""


def out_of_proportion(
    gm: GraphModule,
    sites: Sequence[Site],
    solutions: Mapping[str, Solution],
    calibration: Calibration,
    progress: Progress,
) -> dict[str, Refusal]:
    """Why some of the layers had better stay as they are, by name.

    The loss of a layer is its sensitivity times its chain's error on the calibration.

    Args:
        gm: The graph before any decomposition.
        sites: The layers in question.
        solutions: Their chains, by name.
        calibration: What these were fitted to.
        progress: Told of every layer.
    """
    sensitivity = measure_sensitivity(gm, sites, some_of(calibration, EXAMPLES), progress=progress)
    if not sensitivity:
        return {}
    loss = {name: sensitivity[name] * (each.output_error or 0.0) for name, each in solutions.items()}
    saved = {site.name: site.macs - _macs_of(site, solutions[site.name]) for site in sites}
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


def _macs_of(site: Site, solution: Solution) -> int:
    form = solution.chain.form
    return sum(each.macs for each in forms_of(method_named(form.method), form.rank, site.specs))
