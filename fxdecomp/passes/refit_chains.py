"""Fit the end of every chain once more, to what the original network computes there.

    before   x' -> chain -> y'        x' comes from layers that are already decomposed
    after    x' -> chain -> y''       E ||y - y''||^2 is least, y from the original network

In graph order, so that a chain makes up for the errors of those before it (asymmetric reconstruction, Zhang
et al. 2015, arXiv 1505.06798, section 3.3). What is fitted is the last stage and its bias, or the last two
stages where the last is pointwise, whichever does better on held-out samples; a chain where neither does
stays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxdecomp.calibration import Calibration
from fxdecomp.calibration.lockstep import Lockstep
from fxdecomp.calibration.patches import draw_positions, patches_at
from fxdecomp.calibration.regression import JointMoments, Tail, refit
from fxdecomp.graphs import copy_sharing_tensors, stored_layout
from fxdecomp.outcomes import Applied
from fxdecomp.passes.base import Pass
from fxdecomp.progress import Progress, silent
from fxdecomp.records import Record
from fxdecomp.sites import Call, Site, survey

_HELD_EVERY = 4


@dataclass(frozen=True, slots=True, eq=False)
class _Chain:
    """The end of a chain: its last stage, perhaps the one before it, and the node that it stands for."""

    site: str
    last: Site
    inner: Site | None
    original: str

    @property
    def first(self) -> Call:
        return (self.inner or self.last).calls[0]


@final
@dataclass(frozen=True, slots=True)
class RefitChains(Pass):
    """Refits the chains of a graph in graph order; records how many were changed.

    Attributes:
        original: The graph before `DecomposeLayers`.
        calibration: The batches; every fourth is held out, or the last quarter of each where there are few.
        progress: Told of every finished chain.
    """

    name: ClassVar[str] = "refit_chains"
    original: GraphModule
    calibration: Calibration
    progress: Progress = silent

    @torch.no_grad()
    def call(self, gm: GraphModule, record: Record) -> Record:
        """Replace the last stages' weights and biases where that pays on held-out samples."""
        chains = _chains(gm, self.original, record)
        if not chains:
            return record
        runner = copy_sharing_tensors(gm).eval()
        original = copy_sharing_tensors(self.original).eval()
        pairs = list(zip(self.calibration.values(runner), self.calibration.values(original), strict=True))
        lockstep = Lockstep(runner, original, pairs, self.calibration.budget_bytes)
        changed = 0
        for number, chain in enumerate(chains):
            sums = self._sums(lockstep, chain, number)
            now = _tails(chain)
            found = [refit(fit, held, tail) for (fit, held), tail in zip(sums, now, strict=True)]
            if any(found):
                changed += 1
                tails = [new or old for new, old in zip(found, now, strict=True)]
                for each in (gm, runner):
                    _store(each, chain, tails)
            self.progress("refit", number + 1, len(chains))
        note = f"{changed} of {len(chains)} chains were refitted to the original network's outputs"
        return replace(record, notes=(*record.notes, note))

    def _sums(
        self, lockstep: Lockstep, chain: _Chain, number: int
    ) -> list[tuple[JointMoments, JointMoments]]:
        """For each group, the sums to fit to and those that are held out."""
        spec = chain.first.spec
        groups = spec.groups
        batches = len(tuple(self.calibration.batches))
        size = spec.in_channels // groups * math.prod(spec.kernel)
        most = math.ceil(self.calibration.samples_of(size) / batches)
        sums: list[dict[bool, JointMoments]] = [{} for _ in range(groups)]
        for index, (x, y) in enumerate(
            lockstep.values_at(chain.first.node, chain.first.source, chain.original)
        ):
            wanted = _rows(y, spec.ndim)
            positions = draw_positions(len(wanted), most, self.calibration.seed_of(number, index))
            for held, part in _split(positions, index, batches).items():
                for z, where in zip(patches_at(x, spec, part), torch.split(part, 4096), strict=True):
                    outputs = wanted[where.to(wanted.device)].reshape(len(z), groups, -1)
                    inputs = z.reshape(len(z), groups, -1)
                    for group, total in enumerate(sums):
                        sample = JointMoments.of(inputs[:, group], outputs[:, group])
                        total[held] = total[held] + sample if held in total else sample
        return [(total[False], total[True]) for total in sums]


def _split(positions: Tensor, index: int, batches: int) -> dict[bool, Tensor]:
    """Which positions are fitted to (False) and which are held out (True)."""
    if batches >= _HELD_EVERY:
        return {index % _HELD_EVERY == _HELD_EVERY - 1: positions}
    cut = len(positions) - max(1, len(positions) // _HELD_EVERY)
    return {False: positions[:cut], True: positions[cut:]} if cut else {False: positions, True: positions}


def _chains(gm: GraphModule, original: GraphModule, record: Record) -> list[_Chain]:
    stages = {site.name: site for site in survey(gm).sites}
    sites = {site.name: site for site in survey(original).sites}
    found = []
    for outcome in record.outcomes:
        if not isinstance(outcome, Applied):
            continue
        name = outcome.site
        while name not in sites and name.endswith("_chain"):
            name = name.removesuffix("_chain")
        parts = [stages.get(f"{outcome.site}.{stage}") for stage in outcome.stages]
        if name not in sites or any(part is None or len(part.calls) != 1 for part in parts):
            continue  # a chain of an earlier run, or one that is applied at several places
        known = [part for part in parts if part is not None]
        found.append(_Chain(outcome.site, known[-1], _inner(known), sites[name].calls[0].node.name))
    order = {node: index for index, node in enumerate(gm.graph.nodes)}
    return sorted(found, key=lambda chain: order[chain.last.calls[0].node])


def _inner(stages: list[Site]) -> Site | None:
    """The stage before the last, where both can be fitted as one."""
    last, before = stages[-1].spec, stages[-2].spec
    plain = last.is_pointwise and not last.transposed and all(s == 1 for s in last.stride)
    same = last.groups == before.groups and stages[-2].bias is None
    depthwise = stages[-2].name.rpartition(".")[2].startswith("depthwise")
    return stages[-2] if plain and same and not depthwise else None


def _rows(y: Any, ndim: int) -> Tensor:
    """Output `[..., channels]` or `[batch, channels, *size]` as `[positions, channels]`."""
    moved = y.movedim(-1 - ndim, -1) if ndim else y
    flat: Tensor = moved.reshape(-1, moved.shape[-1])
    return flat


def _tails(chain: _Chain) -> list[Tail]:
    """The chain's end, group by group."""
    groups = chain.last.spec.groups
    outer = chain.last.weight.flatten(1).double()
    bias = outer.new_zeros(len(outer)) if chain.last.bias is None else chain.last.bias.double()
    inner = [None] * groups if chain.inner is None else chain.inner.weight.flatten(1).double().chunk(groups)
    return [Tail(*parts) for parts in zip(outer.chunk(groups), bias.chunk(groups), inner, strict=True)]


def _store(gm: GraphModule, chain: _Chain, tails: list[Tail]) -> None:
    _set(gm, chain.last, torch.cat([tail.outer for tail in tails]), torch.cat([tail.bias for tail in tails]))
    inner = [tail.inner for tail in tails if tail.inner is not None]
    if chain.inner is not None:
        _set(gm, chain.inner, torch.cat(inner), None)


def _set(gm: GraphModule, stage: Site, matrix: Tensor, bias: Tensor | None) -> None:
    """Give a stage new tensors; the old ones belong to the pass's input."""
    module = gm.get_submodule(str(stage.calls[0].node.target))
    old = module.weight
    assert isinstance(old, nn.Parameter)  # made by `stage_module`; narrows the type
    weight = matrix.reshape(stage.spec.weight_shape).to(old.dtype)
    module.weight = nn.Parameter(stored_layout(weight, stage.spec), requires_grad=old.requires_grad)
    if bias is not None:
        module.bias = nn.Parameter(bias.to(old.dtype), requires_grad=old.requires_grad)
