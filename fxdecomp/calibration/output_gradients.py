"""What the network's outputs make of a layer's output: the second moment of their gradients, without labels.

    S = E[g g^T],    g = d (v^T f) / d y,    v = +-1 at random

over all positions of some inputs; E over v gives the Gauss-Newton matrix of `||f||^2 / 2` at y.
Source: Hutchinson 1990, Commun. Stat. Simul. Comput. 19.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx
from torch.fx import GraphModule

from fxdecomp.calibration.batches import Calibration, inputs_of
from fxdecomp.graphs.copies import copy_sharing_tensors
from fxdecomp.graphs.inputs import float_leaves
from fxdecomp.graphs.untouched import copied
from fxdecomp.progress import Progress, silent
from fxdecomp.sites import Site

INPUTS = 32
"""Inputs that say how the network's outputs depend on those of its layers, by one projection each: more
projections change nothing, more inputs little (docs/reductions.md)."""


class _Watched(fx.Interpreter):
    """Runs a graph and keeps the outputs of some nodes, as what gradients are taken with respect to."""

    def __init__(self, gm: GraphModule, names: frozenset[str], room_bytes: int) -> None:
        super().__init__(gm)
        self.kept: dict[str, Tensor] = {}
        self._names, self._room_bytes = names, room_bytes

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and n.op != "get_attr":
            self._room_bytes -= value.numel() * value.element_size()
            if self._room_bytes < 0:
                raise MemoryError
        if n.name not in self._names:
            return value
        self.kept[n.name] = value if value.requires_grad else value.requires_grad_()
        return value.clone()  # which operations in place may change


def output_gradients(
    gm: GraphModule,
    sites: Sequence[Site],
    calibration: Calibration,
    *,
    room_bytes: int,
    progress: Progress = silent,
) -> dict[str, Float[Tensor, "n t"]]:
    """The gradients at some layers' outputs, in float64, as far as their second moments tell.

    Args:
        gm: The graph that the sites were surveyed in; it is not changed, and run in eval mode.
        sites: The layers; those with groups, a recurrence or several calls are left out.
        calibration: Inputs, of which the first batches serve, and the seed of the projections.
        room_bytes: Memory for the values of one run, all of which gradients need.
        progress: Told of every batch.

    Returns:
        A matrix for each layer by name: the second moment `[t, t]`, or where there are fewer than t of them
        the gradients `[n, t]` themselves. None for layers whose output does not reach the network's; empty
        where there is no room, or no gradient of the graph.

    Cost: for each batch a run forward and one backward.
    """
    runner = copy_sharing_tensors(gm).eval()
    plain = [s for s in sites if s.spec.groups == 1 and s.spec.recurrence is None and len(s.calls) == 1]
    layers = {site.calls[0].node.name: site for site in plain}
    generator = torch.Generator().manual_seed(calibration.seed)
    before = accumulate(map(inputs_of, calibration.batches), initial=0)
    values = [each for each, seen in zip(calibration.values(runner), before, strict=False) if seen < INPUTS]
    sums: dict[str, Tensor] = {}
    for index, batch in enumerate(values):
        try:
            with torch.inference_mode(False), torch.enable_grad():
                watched = _Watched(runner, frozenset(layers), room_bytes)
                outputs = [y for y in float_leaves(watched.run(*copied(batch))) if y.requires_grad]
                if not outputs:
                    return {}
                signs = [torch.randint(0, 2, y.shape, generator=generator).to(y) * 2 - 1 for y in outputs]
                places = list(watched.kept.values())
                found = torch.autograd.grad(outputs, places, signs, allow_unused=True)
                for name, slope in zip(watched.kept, found, strict=True):
                    if slope is not None:
                        ndim = layers[name].spec.ndim
                        rows = (slope.movedim(-1 - ndim, -1) if ndim else slope).flatten(0, -2).double()
                        sums[name] = _with(sums.get(name), rows)
        except Exception:  # noqa: BLE001 - a network's own code runs here, and what gives no gradient says so as it likes
            return {}
        progress("gradients", index + 1, len(values))
    return {layers[n].name: S for n, S in sums.items() if bool(S.isfinite().all()) and bool(S.any())}


def _with(known: Tensor | None, rows: Float[Tensor, "n t"]) -> Float[Tensor, "m t"]:
    """Rows added to those before, or to their second moment once they are as many as they are long."""
    if known is None or len(known) < rows.shape[1]:
        rows = rows if known is None else torch.cat((known, rows))
        return rows if len(rows) < rows.shape[1] else rows.T @ rows
    return known + rows.T @ rows
