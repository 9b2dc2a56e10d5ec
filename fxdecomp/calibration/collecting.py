"""Collects the moments of the inputs of many layers in few runs over the batches.

Layers that are fed by the same tensor and look at it alike share their moments; a layer that is applied at
several places pools them. Layers are visited in groups whose sums fit the budget; the batches stand at the
end of one group until the next, as far as memory allows, and are else run from their beginning.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx import GraphModule, Node

from fxdecomp.calibration.batches import Calibration
from fxdecomp.calibration.lockstep import Lockstep
from fxdecomp.calibration.moments import Moments, MomentsSum
from fxdecomp.calibration.patches import ROWS, draw_positions, inputs_first, patches_at, position_count
from fxdecomp.errors import CalibrationError
from fxdecomp.graphs.copies import copy_sharing_tensors
from fxdecomp.graphs.inputs import call_arguments, naming_batch
from fxdecomp.layers import LayerSpec, Recurrence
from fxdecomp.progress import Progress, silent
from fxdecomp.sites import Site
from fxdecomp.sites.base import shape_of

_WALKING = 4
"""Of the room a part of so many is for the values at which the batches stand between two groups."""


@dataclass(slots=True)
class _View:
    """One way of looking at the graph's tensors, the sites that share it, and its sums, one a group."""

    spec: LayerSpec
    places: tuple[tuple[Node, Node], ...]
    sites: list[str]
    seed: int
    rows: float
    sums: list[MomentsSum] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Numbers of a patch, of one group."""
        return self.spec.in_channels // self.spec.groups * math.prod(self.spec.kernel)

    @property
    def size_bytes(self) -> int:
        """The sum and the rows that wait for it, then the metric too; of few rows these alone."""
        return math.ceil(self.spec.groups * self.size * min(self.size, self.rows) * 16)


def collect(
    gm: GraphModule,
    sites: Sequence[Site],
    calibration: Calibration,
    prior: Calibration | None = None,
    *,
    room_bytes: int | None = None,
    progress: Progress = silent,
) -> Iterator[dict[str, tuple[Moments, ...]]]:
    """The moments of layers, a group of layers at a time.

    Args:
        gm: The graph that the sites were surveyed in; it is not changed, and run in eval mode.
        sites: The layers.
        calibration: The batches and options.
        prior: Inputs that are made up, towards whose moments those of few real ones are shrunk; None shrinks
            them towards the identity.
        room_bytes: What is left of the calibration's `budget_bytes`; None for all of it.
        progress: Told of every batch.

    Yields:
        By the layers' names, the moments of each of their groups; an item costs one run over the batches at
        most.

    Raises:
        CalibrationError: A batch does not fit the network, or gives a layer NaN or infinity.
    """
    runner = copy_sharing_tensors(gm).eval()
    order = {node: index for index, node in enumerate(gm.graph.nodes)}
    room = calibration.budget_bytes if room_bytes is None else room_bytes
    given = [calibration] if prior is None else [prior, calibration]
    times = max(_times_the_example(gm, each) for each in given)
    views_of_all = _views(sites, order, times)
    room_of_walks = 0
    if len(groups := _groups(views_of_all, room)) > 1:
        room_of_walks = room // _WALKING
        groups = _groups(views_of_all, room - room_of_walks)
    runs = [_Run(runner, each, room_of_walks // len(given), progress) for each in given]
    for views in groups:
        stops = sorted(
            ((node, source, view) for view in views for node, source in view.places),
            key=lambda stop: order[stop[0]],
        )
        targets: list[tuple[Moments | None, ...]] = [(None,) * view.spec.groups for view in views]
        for run in runs:
            run.fill(views, stops)
            if run is not runs[-1]:
                targets = [tuple(each.shrunk() for each in view.sums) for view in views]
        found: dict[str, tuple[Moments, ...]] = {}
        for view, target in zip(views, targets, strict=True):
            sums = zip(view.sums, target, strict=True)
            shrunk = tuple(each.shrunk(one).compact() for each, one in sums)
            found |= dict.fromkeys(view.sites, shrunk)
            view.sums = []
        yield found


class _Run:
    """Runs over a calibration's batches, each from where the last one stopped as far as memory allows."""

    def __init__(
        self, runner: GraphModule, calibration: Calibration, room_bytes: int, progress: Progress
    ) -> None:
        self._calibration = calibration
        self._values = calibration.values(runner)
        self._lockstep = Lockstep((runner,), (self._values,), room_bytes)
        self._progress = progress

    def fill(self, views: Sequence[_View], stops: Sequence[tuple[Node, Node, _View]]) -> None:
        """One run; it fills the sums of some views anew."""
        for view in views:
            view.sums = [MomentsSum() for _ in range(view.spec.groups)]
        calibration, batches = self._calibration, len(self._values)
        for index, (walk,) in enumerate(self._lockstep.walks(stops[0][0].name)):
            with naming_batch(f"calibration batch {index}", CalibrationError):
                for node, source, view in stops:
                    walk.go_before(node.name)
                    x = inputs_first(walk.value_of(source), view.spec)
                    seed = calibration.seed_of(view.seed, index)
                    most = _share(view, batches, calibration)
                    _add(view, x, draw_positions(position_count(x, view.spec), most, seed), index)
            self._progress("collect", index + 1, batches)


def _times_the_example(gm: GraphModule, calibration: Calibration) -> float:
    """How many times the numbers of the first example input a calibration holds; infinite if not known."""
    shapes = (shape_of(node) for node in gm.graph.find_nodes(op="placeholder"))
    known = math.prod(next((shape for shape in shapes if shape is not None), (0,)))
    leaves = [pytree.tree_leaves(call_arguments(batch)) for batch in calibration.batches]
    held = sum(next((leaf.numel() for leaf in some if isinstance(leaf, Tensor)), 0) for some in leaves)
    return held / known if known and held else math.inf


def _views(sites: Sequence[Site], order: dict[Node, int], times: float) -> list[_View]:
    views: dict[object, _View] = {}
    for site in sites:
        spec = replace(site.spec, out_channels=site.spec.groups, input_size=(), positions=1)
        if spec.recurrence is not None:  # of which the order of the axes alone matters
            order_of = Recurrence("RNN", 1, batch_first=spec.recurrence.batch_first)
            spec = replace(spec, recurrence=order_of)
        places = tuple((call.node, call.source) for call in site.calls)
        key = (spec, tuple(source for _, source in places))
        rows = times * sum(each.positions * math.prod(each.output_size) for each in site.specs)
        view = views.setdefault(key, _View(spec, places, [], order[places[0][0]], rows))
        view.sites.append(site.name)
    return list(views.values())


def _groups(views: list[_View], budget_bytes: int) -> list[list[_View]]:
    """Views in order, as many together as fit the budget, at least one."""
    groups: list[list[_View]] = []
    room = 0
    for view in views:
        room -= view.size_bytes
        if room < 0 or not groups:
            groups.append([])
            room = budget_bytes - view.size_bytes
        groups[-1].append(view)
    return groups


def _share(view: _View, batches: int, calibration: Calibration) -> int:
    """The number of patches to take at one place of one batch."""
    return math.ceil(calibration.samples_of(view.size) / (batches * len(view.places)))


def _add(view: _View, x: Tensor, positions: Tensor, index: int) -> None:
    inputs = 1 if x.ndim < (2 if view.spec.is_linear else view.spec.ndim + 2) else x.shape[0]
    owners = positions.div(position_count(x, view.spec) // max(inputs, 1), rounding_mode="floor")
    for patches, parts_of in zip(patches_at(x, view.spec, positions), torch.split(owners, ROWS), strict=True):
        if not bool(torch.isfinite(patches.square().sum())):
            names = ", ".join(view.sites)
            raise CalibrationError(
                f'calibration batch {index} gives layer "{names}" NaN, infinity or huge values; leave it out'
            )
        parts = patches.reshape(len(patches), view.spec.groups, -1)
        for group, each in enumerate(view.sums):
            each.add(parts[:, group], parts_of)
