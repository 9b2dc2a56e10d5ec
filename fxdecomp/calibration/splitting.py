"""`split`: a part of the calibration that nothing is fitted to, on which the finished network is measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor

from fxdecomp.calibration.batches import Batch, Calibration, inputs_of
from fxdecomp.graphs.inputs import call_arguments

SHARE = 8
"""One of so many batches, or inputs, is held out."""

_LEAST_BATCHES = 4
LEAST_INPUTS = 4
"""Of fewer inputs nothing can be told but themselves: nothing is fitted to them, and none is held out."""


def split(calibration: Calibration) -> tuple[Calibration, tuple[Batch, ...]]:
    """Hold out an eighth of the inputs, at least one.

    Of four batches and more the last ones are held out whole. Of fewer, the last inputs of the last batch,
    where that holds four or more and all its tensors have one first axis. Otherwise nothing is held out: to
    fit to half of three inputs costs more than the measure is worth.

    Args:
        calibration: What the user gave.

    Returns:
        What to fit to, and the batches that are held out: none where there are too few inputs.
    """
    batches = tuple(calibration.batches)
    if len(batches) >= _LEAST_BATCHES:
        kept = -(-len(batches) // SHARE)
        return replace(calibration, batches=batches[:-kept]), batches[-kept:]
    count = inputs_of(batches[-1])
    if count < LEAST_INPUTS or not _has_one_axis(batches[-1]):
        return calibration, ()
    place = count - -(-count // SHARE)
    first, last = rows_of(batches[-1], slice(None, place)), rows_of(batches[-1], slice(place, None))
    return replace(calibration, batches=(*batches[:-1], first)), (last,)


def _has_one_axis(batch: Batch) -> bool:
    leaves = [leaf for leaf in pytree.tree_leaves(call_arguments(batch)) if isinstance(leaf, Tensor)]
    return all(leaf.ndim and leaf.shape[0] == leaves[0].shape[0] for leaf in leaves)


def rows_of(batch: Batch, which: slice) -> Any:
    """Some inputs of a batch, all of whose tensors have one first axis."""
    return pytree.tree_map_only(Tensor, lambda leaf: leaf[which], batch)
