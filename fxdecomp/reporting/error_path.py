"""Where along a network what is lost comes from: each chain alone, and behind all chains before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxdecomp.calibration import Batch
from fxdecomp.graphs.inputs import float_leaves, placeholder_values
from fxdecomp.graphs.walking import Walk
from fxdecomp.outcomes import Applied, Outcome
from fxdecomp.passes import FoldBatchNorm
from fxdecomp.sites.base import shape_of

_MOST_LAYERS = 24


@dataclass(frozen=True, slots=True)
class LayerError:
    """What one chain loses of the variance of the layer's output: `E||y - y'||^2 / E||y - mean(y)||^2`.

    Attributes:
        site: Name of the layer.
        own: With the original network's input.
        accumulated: With the input that the compressed network gives it.
        at_outputs: What the network's outputs lose where this chain alone stands in the original, the mean of
            them; None where that was not measured.
    """

    site: str
    own: float
    accumulated: float
    at_outputs: float | None = None


@torch.no_grad()
def error_along(
    before: GraphModule, after: GraphModule, outcomes: Sequence[Outcome], batch: Batch
) -> tuple[LayerError, ...]:
    """The errors of the chains, in the order of the graph, on one batch that nothing was fitted to.

    Layers that are applied once, as modules that give one tensor, are measured; others are left out. What the
    outputs lose is measured for the 24 that took most: that is a run of the rest of the network for each.

    Args:
        before: The original network.
        after: The compressed one.
        outcomes: What became of its layers.
        batch: Inputs of both.
    """
    left = FoldBatchNorm()(before)
    chains = {o.site: o for o in outcomes if isinstance(o, Applied) and o.calls == 1}
    ends = {str(node.target): node for node in after.graph.nodes if node.op == "call_module"}
    largest = {o.site for o in sorted(chains.values(), key=lambda o: -o.macs_before)[:_MOST_LAYERS]}
    walks = [Walk(gm, placeholder_values(gm, batch)) for gm in (left, after)]
    original = Walk(left, placeholder_values(left, batch)).finish(lambda _, value: value) if largest else ()
    found = []
    for node in list(left.graph.nodes):
        outcome = chains.get(str(node.target)) if node.op == "call_module" else None
        end = None if outcome is None else ends.get(outcome.stage_names[-1])
        if outcome is None or end is None or not isinstance(node.args[0], Node):
            continue
        if isinstance(left.get_submodule(str(node.target)), nn.RNNBase):
            continue
        first = ends[outcome.all_stage_names[0]].args[0]
        if not isinstance(first, Node) or _shapes(first, end) != _shapes(node.args[0], node):
            continue  # it is narrower than the layer was
        walks[0].go_before(node.name)
        value = walks[0].value_of(node.args[0]).clone()
        other = walks[0].fork()
        wanted = walks[0].go_past(node.name).clone()
        got = walks[1].go_past(end.name)
        for stage in outcome.all_stage_names:
            value = after.get_submodule(stage)(value)
        lost = None
        if outcome.site in largest:
            outputs = other.finish(partial(_in_place_of, node.name, value))
            lost = _mean_loss(float_leaves(original), float_leaves(outputs))
        found.append(LayerError(outcome.site, _error(wanted, value), _error(wanted, got), lost))
    return tuple(found)


def _in_place_of(name: str, chain: Tensor, node: str, value: Any) -> Any:
    """The value of a node: what the chain gives, where it is the layer of this name."""
    return chain.clone() if node == name else value


def _shapes(*nodes: Node) -> list[tuple[int, ...] | None]:
    return [shape_of(node) for node in nodes]


def _error(wanted: Tensor, got: Tensor) -> float:
    """The lost share of the variance around the mean of each channel."""
    others = [axis for axis in range(wanted.ndim) if axis != (1 if wanted.ndim > 3 else wanted.ndim - 1)]
    return _share(wanted.double(), got.double(), wanted.double().mean(dim=others, keepdim=True))


def _mean_loss(wanted: Sequence[Tensor], got: Sequence[Tensor]) -> float | None:
    """The lost share of the variance of some outputs, the mean of them; None where there are none."""
    losses = [
        _share(one.double(), two.double(), one.double().mean()) for one, two in zip(wanted, got, strict=True)
    ]
    return sum(losses) / len(losses) if losses else None


def _share(wanted: Tensor, got: Tensor, mean: Tensor) -> float:
    power = float((wanted - mean).square().sum())
    return float((wanted - got).square().sum()) / power if power else 0.0
