"""Where along a network what is lost comes from: each chain by itself, and behind all chains before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxdecomp.calibration import Batch
from fxdecomp.graphs.inputs import placeholder_values
from fxdecomp.graphs.walking import Walk
from fxdecomp.outcomes import Applied, Outcome
from fxdecomp.passes import FoldBatchNorm
from fxdecomp.sites.base import shape_of


@dataclass(frozen=True, slots=True)
class LayerError:
    """What one chain loses of the variance of the layer's output: `E||y - y'||^2 / E||y - mean(y)||^2`.

    Attributes:
        site: Name of the layer.
        own: With the original network's input.
        accumulated: With the input that the compressed network gives it.
    """

    site: str
    own: float
    accumulated: float


@torch.no_grad()
def error_along(
    before: GraphModule, after: GraphModule, outcomes: Sequence[Outcome], batch: Batch
) -> tuple[LayerError, ...]:
    """The errors of the chains, in the order of the graph, on one batch that nothing was fitted to.

    Layers that are applied once, as modules that give one tensor, are measured; others are left out.

    Args:
        before: The original network.
        after: The compressed one.
        outcomes: What became of its layers.
        batch: Inputs of both.
    """
    left = FoldBatchNorm()(before)
    chains = {o.site: o for o in outcomes if isinstance(o, Applied) and o.calls == 1}
    ends = {str(node.target): node for node in after.graph.nodes if node.op == "call_module"}
    walks = [Walk(gm, placeholder_values(gm, batch)) for gm in (left, after)]
    found = []
    for node in list(left.graph.nodes):
        outcome = chains.get(str(node.target)) if node.op == "call_module" else None
        end = None if outcome is None else ends.get(outcome.stage_names[-1])
        if outcome is None or end is None or not isinstance(node.args[0], Node):
            continue
        if isinstance(left.get_submodule(str(node.target)), nn.RNNBase):
            continue
        first = ends[outcome.stage_names[0]].args[0]
        if not isinstance(first, Node) or _shapes(first, end) != _shapes(node.args[0], node):
            continue  # it is narrower than the layer was
        walks[0].go_before(node.name)
        value = walks[0].value_of(node.args[0]).clone()
        wanted = walks[0].go_past(node.name).clone()
        got = walks[1].go_past(end.name)
        for stage in outcome.stage_names:
            value = after.get_submodule(stage)(value)
        found.append(LayerError(outcome.site, _error(wanted, value), _error(wanted, got)))
    return tuple(found)


def _shapes(*nodes: Node) -> list[tuple[int, ...] | None]:
    return [shape_of(node) for node in nodes]


def _error(wanted: Tensor, got: Tensor) -> float:
    """The lost share of the variance around the mean of each channel."""
    exact = wanted.double()
    others = [axis for axis in range(exact.ndim) if axis != (1 if exact.ndim > 3 else exact.ndim - 1)]
    power = float((exact - exact.mean(dim=others, keepdim=True)).square().sum())
    lost = float((exact - got.double()).square().sum())
    return lost / power if power else 0.0
