"""What narrower heads do to a network, as options beside the chains of their layers.

Of queries and keys no layer gives what is lost, and of one layer for all three nothing tells which loses
what. So the damage is measured at every size: keys are put in the space that is left of them, and so are the
inputs of the layer that reads mixed values, which gives what narrower layers would give.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxdecomp.allocation.candidates import Candidate
from fxdecomp.allocation.combined import Place, sums
from fxdecomp.allocation.sensitivity import Change, measure_changes, some_of
from fxdecomp.allocation.site_work import SiteWork
from fxdecomp.calibration.moments import Moments
from fxdecomp.places.head_fits import HeadFit
from fxdecomp.places.heads import Heads
from fxdecomp.progress import Progress

LEAST = 1 / 8
"""Share of the channels that stays at least."""

NARROWED = "width"
"""The method of an option that narrows."""

_MOST_SIZES = 8
"""Sizes of a head that are considered, the whole one among them."""


@torch.no_grad()
def head_places(
    gm: GraphModule,
    heads: Sequence[Heads],
    moments: Mapping[str, Moments],
    work: SiteWork,
    progress: Progress,
) -> list[Place]:
    """The places of heads, with the damage that each size of them does; none where that cannot be told.

    Args:
        gm: The graph.
        heads: The layers, none of them in two.
        moments: Of the inputs of all these layers.
        work: Has the inputs that the damage is measured on.
        progress: Told of every size.
    """
    assert work.calibration is not None  # else nothing has moments; narrows the type
    fits = [HeadFit(each, moments) for each in heads]
    sizes = [(fit, kept) for fit in fits for kept in _sizes(fit.heads.size)]
    changes = [_changes(fit, kept) for fit, kept in sizes]
    damages = measure_changes(gm, changes, some_of(work.calibration), progress) if changes else None
    if damages is None:
        return []
    places = []
    for fit in fits:
        size, first, layers = fit.heads.size, fit.heads.producers[0], fit.heads.layers
        options = []
        for (other, kept), damage in zip(sizes, damages, strict=True):
            if other is fit:
                counts = (round(kept / size * total) for total in sums(layers))
                width = first.spec.out_channels // size * kept
                options.append(Candidate(NARROWED, (width,), damage, *counts))
        places.append(Place(first.name, layers, tuple(options)))
    return places


def _sizes(size: int) -> Iterator[int]:
    """The sizes that are considered, the largest first."""
    step = math.ceil(size / _MOST_SIZES)
    return (kept for kept in range(size - step, 0, -step) if kept >= LEAST * size)


def _changes(fit: HeadFit, kept: int) -> dict[str, Change]:
    """What gives what narrower heads would, by the names of nodes."""
    found: dict[str, Change] = {}
    keys = fit.keys(kept)
    for site in fit.heads.producers:
        if site.name in keys:
            whole = keys[site.name]
            axis = -1 - site.spec.ndim
            found[site.calls[0].node.name] = _mapped(whole, torch.zeros_like(whole[0]), axis)
    if fit.heads.reader is not None:
        reading, site = fit.reading(kept), fit.heads.reader
        whole = reading.guess @ reading.kept
        found[site.calls[0].source.name] = _mapped(whole, reading.mean, -1 - site.spec.ndim)
    return found


def _mapped(whole: Tensor, mean: Tensor, axis: int) -> Change:
    """A change of the channels of a value, about a mean."""

    def change(value: Tensor) -> Tensor:
        rows = value.movedim(axis, -1).double()
        middle = mean.to(rows.device)
        return (middle + (rows - middle) @ whole.to(rows.device).T).movedim(-1, axis).to(value.dtype)

    return change
