"""Fewer states of a recurrent layer: those that the next step and the layer behind miss least.

    gates(t) = W_ih x(t) + b_ih + W_hh h(t - 1) + b_hh,    y(t) = L h(t) + b

A state that goes takes its rows of `W_ih`, `W_hh` and the biases with it, and its columns of `W_hh` and L. Of
these two, on top of each other and each divided by the root of what it gives,

    W = [W_hh / sqrt tr(W_hh C W_hh^T);  L / sqrt tr(L C L^T)],    C = Cov h

the inputs are removed as of any layer (`fxdecomp.fitting.removal`), direction by direction; then the rows of
`W_hh` that are left are fitted to what they gave, and L to all of it, by least squares on the moments of h.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fxdecomp.calibration.moments import Moments
from fxdecomp.fitting.removal import Removal, best_channels, fitted_to


@dataclass(frozen=True, slots=True, eq=False)
class FewerStates:
    """What is left of a recurrent layer and of the layer behind.

    Attributes:
        kept: The states of each direction that stay, ascending.
        recurrent: What becomes of `W_hh` of each direction, `[gates * kept, kept]`, and of its bias.
        reader: What becomes of the layer behind, `[out, directions * kept]`.
    """

    kept: tuple[Int[Tensor, " kept"], ...]
    recurrent: tuple[Removal, ...]
    reader: Removal


@torch.no_grad()
def fewer_states(
    recurrent: Sequence[Float[Tensor, "products hidden"]],
    reader: Float[Tensor, "out states"],
    moments: tuple[Moments, Moments] | None,
    keep: int,
) -> FewerStates:
    """Keep as many states of each direction, those with which both that read them are fitted best.

    Args:
        recurrent: `W_hh` of each direction.
        reader: L, its inputs in the order of the states, direction by direction.
        moments: Of the states at all steps, and of those that L reads, in the same order; None to go by the
            weights alone: then each state counts as much as the weights that read it.
        keep: How many states of a direction stay.

    Cost: for each direction `h^3`, and `h^2 + (gates h + out) h` for each state that goes.
    """
    hidden, states = recurrent[0].shape[1], reader.shape[1]
    alike = Moments.apart(torch.ones(states, dtype=torch.float64))
    seen, read = moments or (alike, alike)
    kept, removals, numbers = [], [], torch.arange(states)
    for way, W in enumerate(recurrent):
        span = slice(way * hidden, (way + 1) * hidden)
        own, behind = seen.of(numbers[span]), read.of(numbers[span])
        stacked = torch.cat([_of_size_one(W, own), _of_size_one(reader[:, span], behind)])
        kept.append(best_channels(stacked, own, keep))
        removals.append(fitted_to(W[_rows(kept[-1], W)], own, kept[-1]))
    columns = torch.cat([each + way * hidden for way, each in enumerate(kept)])
    return FewerStates(tuple(kept), tuple(removals), fitted_to(reader, read, columns))


def _rows(kept: Int[Tensor, " kept"], W: Float[Tensor, "products hidden"]) -> Int[Tensor, " rows"]:
    """The rows of some states, gate by gate."""
    products, hidden = W.shape
    gates = products // hidden
    return (kept + hidden * torch.arange(gates)[:, None]).flatten()


def _of_size_one(weight: Float[Tensor, "out in"], moments: Moments) -> Float[Tensor, "out in"]:
    """A weight over the root of its outputs' variance; a weight that gives nothing stays."""
    wide = weight.double()
    power = float(((wide @ moments.dense().double().to(wide.device)) * wide).sum())
    return wide / power**0.5 if power > 0 else wide
