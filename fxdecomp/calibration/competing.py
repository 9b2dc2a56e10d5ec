"""Networks made of one original against each other, on inputs that neither was fitted to."""

from __future__ import annotations

from dataclasses import replace

from torch.fx import GraphModule

from fxdecomp.calibration.batches import Calibration
from fxdecomp.calibration.judging import Judged
from fxdecomp.graphs.drawing import is_noise
from fxdecomp.graphs.inputs import float_leaves
from fxdecomp.graphs.records import Record, attach_record, record_of
from fxdecomp.outcomes import Applied, Skipped

FEW = 32
"""Fewer inputs are joined with made-up ones, and the fit to them is doubted whatever it looks like."""


def is_doubtful(fitted: GraphModule, data: Calibration, judged: Judged | None) -> bool:
    """Whether the weights alone might do better than a network that was fitted to few inputs, or poorly.

    Args:
        fitted: The network.
        data: What it was fitted to; that there are few is no reason to doubt inputs that were made up.
        judged: What its distance was measured on; drawn noise, or one number, is no judge of made-up inputs.
    """
    quality = (record_of(fitted) or Record()).quality
    if quality is None or judged is None or not quality.held_out or quality.agreement == 1:
        return False
    if data.made_up:
        return quality.is_poor and not any(map(is_noise, float_leaves(list(judged.batches))))
    return data.count < FEW or quality.is_poor


FITTED = ("the fit to the calibration", "what the weights alone give", "fitted")
REFITTED = ("the fit after its refit", "the fit before its refit", "refitted")
WIDTHS = ("what has fewer inner channels", "what has all inner channels", "with fewer")
JOINTS = ("what shares input stages", "what shares none", "with them")
"""What two competitors are called, and what the first one is and the second not."""


def better(first: GraphModule, second: GraphModule, words: tuple[str, str, str] = FITTED) -> GraphModule:
    """The one of two networks that differs less from the original; its record says how they compared.

    By the relative error of the outputs: of the decisions of a few inputs, one more or less is chance.

    Args:
        first: A network, which is taken where both are alike; commonly the one that was fitted.
        second: Another of the same original, measured on the same inputs.
        words: How the note tells them apart.
    """
    record, other = record_of(first) or Record(), record_of(second) or Record()
    if record.quality is None or other.quality is None:
        return first
    ours, theirs = record.quality.relative_error, other.quality.relative_error
    won = ours <= theirs
    taken, name = (record, words[0]) if won else (other, words[1])
    note = f"{name} was chosen on {record.quality.inputs}: error {ours:.1%} {words[2]}, {theirs:.1%} not"
    chosen = first if won else second
    why = {each.site: each for each in record.outcomes if isinstance(each, Skipped)}
    outcomes = tuple(
        each if isinstance(each, Applied) else why.get(each.site, each) for each in taken.outcomes
    )
    said = replace(taken, outcomes=outcomes, policy=record.policy, notes=(*taken.notes, note))
    attach_record(chosen, said)
    return chosen
