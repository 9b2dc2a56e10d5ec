"""How much a network's output suffers per unit of error at each layer, measured by forward passes.

At one layer at a time the output `y` is replaced by

    y' = m + U U^T (y - m)

with `m` its mean and `U` the leading eigenvectors of its covariance over the channels, all but those that
hold a small share of its variance: the error of a calibrated `channel_svd`, and of the kind of that of other
methods. With `e` the variance that is lost and `D` the damage at the network's output
(`fxdecomp.allocation.agreement`), the sensitivity is `D / e`. `benchmarks/sensitivity.py`
compares it with gradients. No node gives the input product of a recurrent layer: there the input is changed,
so that the product becomes `y'`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxdecomp.allocation.agreement import Agreement
from fxdecomp.calibration import Batch, Calibration
from fxdecomp.calibration.batches import inputs_of
from fxdecomp.graphs.copies import copy_sharing_tensors
from fxdecomp.graphs.inputs import float_leaves, placeholder_values
from fxdecomp.graphs.walking import Walk
from fxdecomp.progress import Progress, silent
from fxdecomp.sites import Site

Change = Callable[[Tensor], Tensor]

LOST = 0.03
"""Share of a layer's variance that is taken away."""

_STILL = 1e-12
"""Share of the largest variance below which a direction does not vary."""

EXAMPLES = 16
"""Examples of a calibration that sensitivities are measured on."""

LEAST_EXAMPLES = 16
"""Of fewer, sensitivities say more about them than about the network: then all layers count alike."""


def measure_sensitivity(
    gm: GraphModule,
    sites: Sequence[Site],
    batches: Sequence[Batch],
    *,
    lost: float = LOST,
    progress: Progress = silent,
) -> dict[str, float]:
    """The damage at the network's output per unit of relative squared error at a layer's output.

    Args:
        gm: The graph that the sites were surveyed in; it is not changed, and run in eval mode.
        sites: The layers.
        batches: Unlabelled inputs; a few dozen examples suffice.
        lost: Share of a layer's variance that is taken away, at most.
        progress: Told of every layer.

    Returns:
        One number for each layer, by name; 0 where its output does not reach the network's, 1 where its
        output does not vary. Empty where the network's outputs cannot be compared.

    Cost: for each layer a forward pass over the batches from that layer on, and two whole ones.
    """
    runner = copy_sharing_tensors(gm).eval()
    agreement = Agreement(runner, batches)
    if agreement.is_blind:
        return {}
    own = _inputs_apart(runner, sites)
    probes = [_InputProbe(s, lost, own) if s.spec.recurrence else _Probe(s, lost) for s in sites]
    _run(runner, agreement, probes, batches, progress)
    found = {probe.name: probe.sensitivity for probe in probes}
    return {site.name: found[site.name] for site in sites}


def measure_changes(
    gm: GraphModule,
    changes: Sequence[Mapping[str, Change]],
    batches: Sequence[Batch],
    progress: Progress = silent,
) -> list[float] | None:
    """The damage at the network's output of changes of values, each made alone.

    Args:
        gm: The graph; it is not changed, and run in eval mode.
        changes: What becomes of the values of some nodes, by their names.
        batches: Unlabelled inputs.
        progress: Told of every change.

    Returns:
        A number for each; None where the network's outputs cannot be compared.

    Cost: for each a forward pass over the batches from its first node on, and two whole ones.
    """
    runner = copy_sharing_tensors(gm).eval()
    agreement = Agreement(runner, batches)
    if agreement.is_blind:
        return None
    names = [node.name for node in runner.graph.nodes]
    probes = [_Changes(next(name for name in names if name in each), each) for each in changes]
    _run(runner, agreement, probes, batches, progress)
    return [probe.damage for probe in probes]


def _run(
    runner: GraphModule,
    agreement: Agreement,
    probes: Sequence[_Probe | _Changes],
    batches: Sequence[Batch],
    progress: Progress,
) -> None:
    """Let every probe change the graph's values alone, and add up what that does to the outputs."""
    order = {node.name: index for index, node in enumerate(runner.graph.nodes)}
    ordered = sorted(probes, key=lambda probe: order[probe.first])
    for index, batch in enumerate(batches):
        walk = Walk(runner, placeholder_values(runner, batch))
        for number, probe in enumerate(ordered):
            walk.go_before(probe.first)
            outputs = walk.fork().finish(probe.changed)
            leaves = [leaf.double() for leaf in float_leaves(outputs)]
            probe.damage += agreement.lost_in(index, leaves)
            done = index * len(ordered) + number + 1
            progress("sensitivities", done, len(batches) * len(ordered), probe.name)


class _Changes:
    """Changes values in given ways."""

    def __init__(self, first: str, changes: Mapping[str, Change]) -> None:
        self.name = self.first = first
        self._changes = changes
        self.damage = 0.0

    def changed(self, name: str, value: Any) -> Any:
        """The value of a node, changed where it is one of those."""
        return self._changes[name](value) if name in self._changes else value


class _Probe:
    """Takes variance away at one layer; adds up how much, and what that does to the outputs."""

    def __init__(self, site: Site, lost: float) -> None:
        self.name, self.first = site.name, site.calls[0].node.name
        self._nodes = {call.node.name for call in site.calls}
        self._spatial, self._lost = site.spec.ndim, lost
        self._gone = self._power = self.damage = 0.0

    def changed(self, name: str, value: Any) -> Any:
        """The value of a node, without its weakest directions where it is the layer's."""
        if name not in self._nodes:
            return value
        kept, gone, power = truncated(value, self._spatial, self._lost)
        self._gone += gone
        self._power += power
        return kept

    @property
    def sensitivity(self) -> float:
        return self.damage * self._power / self._gone if self._gone else 1.0


class _InputProbe(_Probe):
    """Takes variance away from the input product of a recurrent layer, by another input."""

    def __init__(self, site: Site, lost: float, own: Mapping[str, str]) -> None:
        super().__init__(site, lost)
        self._nodes = {own[name] for name in self._nodes}
        self.first = own[self.first]
        self._triangle = torch.linalg.qr(site.weight.double(), mode="r").R  # of the same singular vectors
        self._back = torch.linalg.pinv(self._triangle)

    def changed(self, name: str, value: Any) -> Any:
        """The value of a node, the layer's input so that its product loses the weakest directions."""
        if name not in self._nodes:
            return value
        product = value.double() @ self._triangle.T
        kept = super().changed(name, product)
        return (value + (kept - product) @ self._back.T).to(value.dtype)


def _inputs_apart(runner: GraphModule, sites: Sequence[Site]) -> dict[str, str]:
    """Give every call of a recurrent layer a node of its own for its input; their names, by the call's."""
    nodes = {node.name: node for node in runner.graph.nodes}
    own = {}
    for call in (call for site in sites if site.spec.recurrence for call in site.calls):
        node = nodes[call.node.name]
        with runner.graph.inserting_before(node):
            before = runner.graph.call_function(_same, (nodes[call.source.name],))
        if node.args:
            node.args = (before, *node.args[1:])
        else:
            node.kwargs = {**node.kwargs, "input": before}
        own[node.name] = before.name
    return own


def _same(x: Tensor) -> Tensor:
    return x


def some_of(calibration: Calibration, examples: int = EXAMPLES) -> list[Batch]:
    """The first batches of a calibration, as many as hold so many examples."""
    batches: list[Batch] = []
    for batch in calibration.batches:
        if sum(map(inputs_of, batches)) >= examples:
            break
        batches.append(batch)
    return batches


def truncated(y: Tensor, spatial: int, lost: float) -> tuple[Tensor, float, float]:
    """A layer's output without its weakest directions, the squares that are gone, and those there were.

    Args:
        y: `[..., channels, *size]`.
        spatial: Number of spatial axes.
        lost: Share of the variance over the channels that may go; one direction that varies goes in any case.
    """
    last = y.movedim(-1 - spatial, -1)
    rows = last.reshape(-1, last.shape[-1]).double()
    mean = rows.mean(0)
    centred = rows - mean
    is_wide = len(centred) < centred.shape[1]  # the same directions, seen from the rows
    values, vectors = torch.linalg.eigh(centred @ centred.T if is_wide else centred.T @ centred)
    gone = values.clamp_min(0).cumsum(0)
    still = int((values <= _STILL * values[-1]).sum())
    drop = min(max(1 + still, int((gone <= lost * gone[-1]).sum())), len(values))
    basis = vectors[:, drop:]
    kept = (basis @ (basis.T @ centred) if is_wide else centred @ basis @ basis.T) + mean
    result = kept.reshape(last.shape).movedim(-1, -1 - spatial).to(y.dtype)
    return result.contiguous(), float(gone[drop - 1]), float(gone[-1])
