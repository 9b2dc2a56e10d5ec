"""Fit every chain once more, to what the original network computes there.

    before   x' -> chain -> y'        x' comes from layers that are already decomposed
    after    x' -> chain -> y''       E ||M (y - y'')||^2 is least, y from the original network

In graph order, so that a chain makes up for the errors of those before it (asymmetric reconstruction, Zhang
et al. 2015, arXiv 1505.06798, section 3.3). `M` weighs what matters to the network's outputs, as far as
gradients of the original tell (`fxdecomp.fitting.output_side`). Where nothing but a ReLU sees the layer's
output, the last stage is then fitted to what it lets through. A chain whose fit does not hold on held-out
samples stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxdecomp.calibration import Calibration
from fxdecomp.calibration.lockstep import Lockstep
from fxdecomp.calibration.patches import ROWS, draw_positions, inputs_first, patches_at
from fxdecomp.chains import Chain, Form
from fxdecomp.decompositions import method_named
from fxdecomp.decompositions.factorising import relative_error
from fxdecomp.fitting.observed import Observed
from fxdecomp.fitting.output_side import OutputSide
from fxdecomp.fitting.rectifying import rectify
from fxdecomp.fitting.refitting import JointMoments, error_over, refit, variance_over
from fxdecomp.graphs.copies import copy_sharing_tensors, stored_layout
from fxdecomp.graphs.records import Record
from fxdecomp.layers import LayerSpec, StageSpec
from fxdecomp.linalg.memory import give_back_memory
from fxdecomp.outcomes import WIDTH, Applied, Outcome
from fxdecomp.passes.base import Pass
from fxdecomp.progress import Progress, silent
from fxdecomp.sites import Site, survey
from fxdecomp.sites.recurrent import input_product, with_inputs

_HELD_EVERY = 4
_LARGE_BYTES = 1 << 20
"""Size of a weight that is fitted with so much memory that what was freed before is given back."""
_LEAST_ROWS = 16
"""Fewer rows, of which a quarter judges, say nothing of others: the chain then stays as it was factorised."""
_RELUS = (
    "relu",
    "relu_",
    torch.relu,
    torch.relu_,
    nn.functional.relu,
    nn.functional.relu_,
    torch.ops.aten.relu.default,
    torch.ops.aten.relu_.default,
)


@dataclass(frozen=True, slots=True, eq=False)
class _Target:
    """A chain's stages in the graph, and the layer of the original graph that it stands for."""

    outcome: Applied
    stages: tuple[Site, ...]
    layer: Site

    @property
    def is_rectified(self) -> bool:
        """Whether nothing but ReLUs sees the layer's output."""
        users = self.layer.calls[0].node.users
        return bool(users) and all(map(_is_relu, users))

    @property
    def spec(self) -> LayerSpec:
        """The layer with the inputs that are left of it."""
        return replace(self.layer.spec, in_channels=self.stages[0].spec.in_channels)

    @property
    def is_narrowed(self) -> bool:
        """Whether fewer inputs are left than there were."""
        return self.spec.in_channels < self.layer.spec.in_channels

    @property
    def chain(self) -> Chain:
        """What is to be fitted, in at least float32, with a bias in float64."""
        spec, outcome = self.spec, self.outcome
        form = (
            Form(WIDTH, outcome.rank, (StageSpec("", spec),))
            if outcome.method == WIDTH
            else method_named(outcome.method).form(spec, outcome.rank)
        )
        last = self.stages[-1]
        bias = last.weight.new_zeros(spec.out_channels) if last.bias is None else last.bias
        return Chain(form, tuple(_wide(stage.weight) for stage in self.stages), bias.double())

    @property
    def layers(self) -> tuple[Tensor, ...]:
        """The original layer's weight, group by group; of a narrowed one, what it is now."""
        if self.is_narrowed:
            return self.chain.composed_weight().chunk(self.spec.groups)
        return _wide(self.layer.weight).chunk(self.layer.spec.groups)


@final
@dataclass(frozen=True, slots=True)
class RefitChains(Pass):
    """Refits the chains of a graph in graph order; records how many were changed, and their errors.

    Attributes:
        original: The graph before `DecomposeLayers`.
        calibration: The batches; every fourth is held out, or the last quarter of each where there are few.
        progress: Told of every finished chain.
        sides: Gives how the outputs of some layers are weighed, by name; None for all alike.
    """

    name: ClassVar[str] = "refit_chains"
    original: GraphModule
    calibration: Calibration
    progress: Progress = silent
    sides: Callable[[Set[str], Progress], Mapping[str, OutputSide]] | None = None

    @torch.no_grad()
    def call(self, gm: GraphModule, record: Record) -> Record:
        """Replace the stages' weights and the bias where that pays on held-out samples."""
        targets, shared = _targets(gm, self.original, record)
        targets = [target for target in targets if self.calibration.can_fit(target.layer.spec)]
        if not targets and not shared:
            return record
        runner = copy_sharing_tensors(gm).eval()
        original = copy_sharing_tensors(self.original).eval()
        graphs = runner, original
        room = self.calibration.budget_bytes // 4  # the rest is for sums, and what a fit makes of them
        names = {target.layer.name for target in targets}
        sides = {} if self.sides is None else self.sides(names, self.progress)
        lockstep = Lockstep(graphs, [self.calibration.values(each) for each in graphs], room)
        outcomes: dict[str, Outcome] = {outcome.site: outcome for outcome in record.outcomes}
        changed = 0
        efforts = [each.layer.spec.effort for each in targets]
        for number, target in enumerate(targets):
            observed = self._observed(lockstep, target, number)
            if target.layer.weight.nbytes >= _LARGE_BYTES:
                give_back_memory()
            sums = [each.moments() for each in observed]
            before = target.chain.by_group()
            after = list(before)
            can_judge = min(fit.inputs.count for fit, _ in sums) >= _LEAST_ROWS
            if can_judge:
                parts = zip(sums, before, target.layers, strict=True)
                side = sides.get(target.layer.name)
                fitted = refit if side is None else side.refit
                after = [fitted(*known, chain, layer) for known, chain, layer in parts]
            if can_judge and target.is_rectified:
                after = [rectify(*o.samples(), chain) for o, chain in zip(observed, after, strict=True)]
            if any(new is not old for new, old in zip(after, before, strict=True)):
                changed += 1
                for each in (gm, runner):
                    _store(each, target, after)
            outcomes[target.outcome.site] = _measured(target, after, sums)
            del observed, sums
            self.progress("refit", sum(efforts[: number + 1]), sum(efforts), target.outcome.site)
        give_back_memory()  # the result is copied next
        weighed = f", weighed by its gradients at {len(sides)} of them" if sides else ""
        notes = [
            f"{changed} of {len(targets)} chains were refitted to the original network's outputs{weighed}"
        ]
        if shared:
            notes.append(f"chains that are applied at several places are not refitted: {', '.join(shared)}")
        return replace(record, outcomes=tuple(outcomes.values()), notes=(*record.notes, *notes))

    def _observed(self, lockstep: Lockstep, target: _Target, number: int) -> list[Observed]:
        """What is known of each group's inputs and wanted outputs."""
        spec = target.spec
        groups = spec.groups
        batches = len(tuple(self.calibration.batches))
        size = spec.in_channels // groups * math.prod(spec.kernel)
        most = math.ceil(self.calibration.samples_of(size, spec.out_channels // groups) / batches)
        found = [Observed(size, keep=target.is_rectified) for _ in range(groups)]
        first = target.stages[0].calls[0]
        layer = target.layer.calls[0]
        is_recurrent = spec.recurrence is not None  # no node gives its product
        for index, (ours, theirs) in enumerate(lockstep.walks(first.node.name, layer.node.name)):
            ours.go_before(first.node.name)
            x = inputs_first(ours.value_of(first.source), spec)
            theirs.go_before(layer.node.name)
            y = theirs.value_of(layer.source) if is_recurrent else theirs.go_past(layer.node.name)
            wanted = _rows(inputs_first(y, spec), spec.ndim)
            positions = draw_positions(len(wanted), most, self.calibration.seed_of(number, index))
            for held, part in _split(positions, index, batches).items():
                for z, where in zip(patches_at(x, spec, part), torch.split(part, ROWS), strict=True):
                    outputs = wanted[where.to(wanted.device)]
                    outputs = input_product(target.layer, outputs) if is_recurrent else outputs
                    outputs = outputs.reshape(len(z), groups, -1).to(z.dtype)
                    rows = torch.cat((z.reshape(len(z), groups, -1), outputs), dim=2)
                    for group, each in enumerate(found):
                        each.add(rows[:, group], held=held)
        return found


def _is_relu(node: Node) -> bool:
    if node.op == "call_module":
        module = node.graph.owning_module
        return module is not None and isinstance(module.get_submodule(str(node.target)), nn.ReLU)
    return node.target in _RELUS


def _split(positions: Tensor, index: int, batches: int) -> dict[bool, Tensor]:
    """Which positions are fitted to (False) and which are held out (True)."""
    if batches >= _HELD_EVERY:
        return {index % _HELD_EVERY == _HELD_EVERY - 1: positions}
    cut = len(positions) - max(1, len(positions) // _HELD_EVERY)
    return {False: positions[:cut], True: positions[cut:]} if cut else {False: positions, True: positions}


def _targets(gm: GraphModule, original: GraphModule, record: Record) -> tuple[list[_Target], list[str]]:
    """The chains in graph order, and the names of those that are applied at several places."""
    stages = {site.name: site for site in survey(gm).sites}
    sites = {site.name: site for site in survey(original).sites}
    found, shared = [], []
    for outcome in record.outcomes:
        if not isinstance(outcome, Applied):
            continue
        parts = [stages[part] for part in outcome.stage_names if part in stages]
        if outcome.site not in sites or len(parts) < len(outcome.stages):
            continue  # a chain of an earlier run
        if parts[-1].spec.out_channels != sites[outcome.site].spec.out_channels:
            continue  # the layer that reads fewer of them is fitted
        narrower = parts[0].spec.in_channels < sites[outcome.site].spec.in_channels
        if outcome.method == WIDTH and not narrower:
            continue  # by an earlier run
        if any(len(part.calls) > 1 for part in parts):
            shared.append(outcome.site)
        else:
            found.append(_Target(outcome, tuple(parts), sites[outcome.site]))
    order = {node: index for index, node in enumerate(gm.graph.nodes)}
    return sorted(found, key=lambda target: order[target.stages[-1].calls[0].node]), shared


def _rows(y: Any, ndim: int) -> Tensor:
    """Output `[..., channels]` or `[batch, channels, *size]` as `[positions, channels]`."""
    moved = y.movedim(-1 - ndim, -1) if ndim else y
    flat: Tensor = moved.reshape(-1, moved.shape[-1])
    return flat


def _wide(weight: Tensor) -> Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def _measured(
    target: _Target, chains: Sequence[Chain], sums: Sequence[tuple[JointMoments, JointMoments]]
) -> Applied:
    """The outcome with the errors of the chain as it is now, over all samples."""
    lost = sum(error_over(parts, chain) for parts, chain in zip(sums, chains, strict=True))
    power = sum(map(variance_over, sums))
    composed = torch.cat([chain.composed_weight() for chain in chains])
    error = target.outcome.relative_error  # that of weights of one size
    return replace(
        target.outcome,
        relative_error=error if target.is_narrowed else relative_error(target.layer.weight, composed),
        output_error=None if not math.isfinite(power) else lost / power if power > 0 else 0.0,
    )


def _store(gm: GraphModule, target: _Target, chains: Sequence[Chain]) -> None:
    """Give the stages new tensors; the old ones belong to the pass's input."""
    whole = Chain.joined(target.chain.form, chains)
    for stage, new in zip(target.stages, whole.stages, strict=True):
        path = str(stage.calls[0].node.target)
        module = gm.get_submodule(path)
        if isinstance(module, nn.RNNBase):
            dtype, trains = stage.weight.dtype, target.layer.bias_trains
            bias = None if new.bias is None else new.bias.to(dtype)
            again = with_inputs(module, new.weight.to(dtype), bias, trains=stage.trains, bias_trains=trains)
            gm.set_submodule(path, again)
            continue
        old = module.weight
        assert isinstance(old, nn.Parameter)  # made by `stage_module`; narrows the type
        weight = stored_layout(new.weight.to(old.dtype), stage.spec, old)
        module.weight = nn.Parameter(weight, requires_grad=old.requires_grad)
        if new.bias is not None:
            module.bias = nn.Parameter(new.bias.to(old.dtype), requires_grad=target.layer.bias_trains)
