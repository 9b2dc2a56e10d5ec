"""Inputs moved until the BatchNorms of a network see what they stored in training.

The means and variances that a BatchNorm keeps are all that is left of the data that a network was trained on.
Gradient steps on the inputs lower

    sum over BatchNorms of  mean over channels of  (m - mean)^2 / (var + eps)  +  (s / sqrt(var + eps) - 1)^2

with `m` and `s` what a batch shows there.

Source: Cai et al. 2020, ZeroQ, arXiv 2001.00281, equation 4, in units of each channel's own deviation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch.fx import GraphModule, Node

from fxdecomp.calibration.batches import Batch
from fxdecomp.errors import FxdecompError
from fxdecomp.graphs.inputs import placeholder_values
from fxdecomp.graphs.untouched import evaluating, same_chance, unchanged_buffers
from fxdecomp.sites.constants import Constants
from fxdecomp.sites.norms import Norm, norms_of

STEPS = 12
_NEAR = 0.01
"""Loss at which a batch is near enough: a tenth of a deviation in mean and spread."""
_RATE = 0.2
"""Of Adam, in deviations of the inputs."""


def matched(gm: GraphModule, batches: Sequence[Batch]) -> list[Any]:
    """The batches, each moved towards the network's stored statistics, within the range that it had.

    Floating-point inputs alone move. Batches of a network that keeps no statistics, or through which no
    gradient passes, stay as they are; so do those that the steps do not bring nearer.

    Args:
        gm: A traced network, its BatchNorms not folded; it is not changed.
        batches: Inputs.

    Cost: up to `STEPS` runs forward and back for each batch.
    """
    known = norms_of(gm, Constants(gm))
    norms = {
        node: (norm.source, norm)
        for node, norm in known.items()
        if not norm.reason and isinstance(norm.source, Node)
    }
    if not norms:
        return list(batches)
    with torch.inference_mode(False), torch.enable_grad(), evaluating(gm), unchanged_buffers(gm):
        return [_moved(_Reader(gm, norms), batch) for batch in batches]


def _moved(reader: _Reader, batch: Batch) -> Any:
    """One batch, at the step that came nearest."""
    leaves, structure = pytree.tree_flatten(batch)
    free = {
        index: leaf.detach().clone().requires_grad_()
        for index, leaf in enumerate(leaves)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    }
    if not free:
        return batch
    ends = {index: (leaf.detach().min(), leaf.detach().max()) for index, leaf in free.items()}
    spreads = [float(leaf.detach().std()) for leaf in free.values() if leaf.numel() > 1]
    spread = max(spreads, default=0.0) or 1.0
    optimiser = torch.optim.Adam(list(free.values()), lr=_RATE * spread)
    best, least = leaves, float("inf")
    for _ in range(STEPS):
        current = [free.get(index, leaf) for index, leaf in enumerate(leaves)]
        try:
            loss = reader.loss(pytree.tree_unflatten(current, structure))
            gradients = torch.autograd.grad(loss, list(free.values()), allow_unused=True)
        except (RuntimeError, FxdecompError):  # a part without gradients stands in the way
            return batch
        if (now := float(loss.detach())) < least:
            least = now
            best = [leaf.detach().clone() if index in free else leaf for index, leaf in enumerate(current)]
        if least < _NEAR:
            break
        for leaf, gradient in zip(free.values(), gradients, strict=True):
            leaf.grad = gradient
        optimiser.step()
        with torch.no_grad():
            for index, leaf in free.items():
                leaf.clamp_(*ends[index])
    return pytree.tree_unflatten(best, structure)


class _Reader(fx.Interpreter):
    """Runs a graph and compares what its BatchNorms see with what they stored."""

    def __init__(self, gm: GraphModule, norms: Mapping[Node, tuple[Node, Norm]]) -> None:
        super().__init__(gm)
        self._gm = gm
        self._norms = norms
        self._losses: list[Tensor] = []

    def loss(self, batch: Batch) -> Tensor:
        """The mean over all BatchNorms that the batch reaches.

        Raises:
            RuntimeError: It reaches none.
        """
        self._losses.clear()
        with same_chance(batch):
            values = placeholder_values(self._gm, batch)
            self.run(*pytree.tree_map_only(Tensor, torch.clone, values), enable_io_processing=False)
        return torch.stack(self._losses).mean()

    def run_node(self, n: Node) -> Any:
        """Run a node; of a BatchNorm compare what it is about to see."""
        if n in self._norms:
            source, norm = self._norms[n]
            self._losses.append(_gap(self.env[source], norm))
        return super().run_node(n)


def _gap(x: Tensor, norm: Norm) -> Tensor:
    """How far the channels of `[N, C, ...]` are from a BatchNorm's mean and deviation."""
    assert norm.mean is not None
    assert norm.var is not None
    axes = [0, *range(2, x.ndim)]
    deviation = (norm.var + norm.eps).sqrt()
    mean = (x.mean(axes) - norm.mean) / deviation
    spread = (x.var(axes, correction=0) + norm.eps).sqrt() / deviation - 1
    return mean.square().mean() + spread.square().mean()
