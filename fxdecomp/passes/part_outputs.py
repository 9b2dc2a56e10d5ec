"""Make of a joint layer the stages that its layers share and one for each; or those layers again.

    before   x -> q.pointwise_in (64->R) -> q.pointwise_out (R->192) -> narrow -> a, narrow -> b, narrow -> c
    after    x -> q.pointwise_in (64->R) -> q.pointwise_out (R->64) -> a
                                         -> k.pointwise_out (R->64) -> b
                                         -> v.pointwise_out (R->64) -> c

The rows of the last stage's weight are the parts'; nothing else changes, whatever the method. A joint layer
that was left alone is taken apart, and its layers come back with their names and tensors. The rows of the
record, and those of the plan, become those of the layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.graph_module import _get_attr

from fxdecomp.chains import Stage, composed
from fxdecomp.decompositions.factorising import relative_error
from fxdecomp.graphs.copies import copy_sharing_tensors, stage_module
from fxdecomp.graphs.records import Joint, Record
from fxdecomp.graphs.replacing import Replacer, remove_unread, remove_unused, store
from fxdecomp.layers import StageSpec
from fxdecomp.outcomes import Applied, Outcome, Skipped
from fxdecomp.passes.base import Pass
from fxdecomp.passes.decompose_layers import in_graph_order
from fxdecomp.passes.join_inputs import added_biases
from fxdecomp.places.operations import is_arrangement, operation_of
from fxdecomp.plans import Choice, Plan
from fxdecomp.policy.rules import INPUT
from fxdecomp.sites import Site, survey


@final
@dataclass(frozen=True, slots=True)
class PartOutputs(Pass):
    """Takes joint layers apart.

    Attributes:
        original: The graph before `JoinInputs`.
    """

    name: ClassVar[str] = "part_outputs"
    original: GraphModule

    @torch.no_grad()
    def call(self, gm: GraphModule, record: Record) -> Record:
        """Take every joint layer of the record apart."""
        originals = {site.name: site for site in survey(self.original).sites}
        stages = {site.name: site for site in survey(gm).sites}
        outcomes = {outcome.site: outcome for outcome in record.outcomes}
        undoing = _Undoing(gm, copy_sharing_tensors(self.original))
        chains: dict[Joint, list[Site]] = {}
        dropped = record.dropped_params
        for joint in record.joints:
            outcome = outcomes[joint.names[0]]
            names = outcome.stage_names if isinstance(outcome, Applied) else joint.names[:1]
            chains[joint] = [stages[name] for name in names]
            sites, node = [originals[name] for name in joint.names], chains[joint][-1].calls[0].node
            dropped += added_biases(sites)
            undoing.pair(sites[0].calls[0].source, chains[joint][0].calls[0].source)
            undoing.undo(node, sites, joint.scales, stays=isinstance(outcome, Applied))
        remove_unused(gm)
        layers = originals | {site.name: site for site in survey(gm).sites}
        parting = _Parting(gm, Replacer(gm))
        rows: dict[str, list[Outcome]] = {}
        for joint, chain in chains.items():
            outcome, sites = outcomes[joint.names[0]], [layers[name] for name in joint.names]
            if isinstance(outcome, Applied):
                parting.part(chain, sites, joint.scales)
                rows[outcome.site] = [*_rows(outcome, chain, sites, parting)]
            else:
                rows[outcome.site] = [site.skipped(outcome.reason, outcome.detail) for site in sites]
        remove_unused(gm)
        found = itertools.chain.from_iterable(rows.get(o.site, [o]) for o in record.outcomes)
        parted = {outcome.site: outcome for outcome in found}
        owners = {s: o.site for o in parted.values() if isinstance(o, Applied) for s in o.stage_names}
        ordered = tuple(parted[name] for name in in_graph_order(parted, survey(gm).sites, owners))
        plan = None if record.plan is None else _parted(record.plan, rows)
        return replace(record, outcomes=ordered, plan=plan, joints=(), dropped_params=dropped)


class _Undoing:
    """Puts layers of the original back into a graph, where parts of joint layers are."""

    def __init__(self, gm: GraphModule, original: GraphModule) -> None:
        self._gm, self._original = gm, original
        self._there: dict[str, Node] = {node.name: node for node in gm.graph.nodes}
        self._back: dict[Node, Node] = {}

    def pair(self, old: Node, new: Node) -> None:
        """Note that a value of the original is this one now, and so is what it is an arrangement of."""
        self._there[old.name] = new
        same = (old.op, old.target) == (new.op, new.target)
        if same and is_arrangement(operation_of(self._original, old)):
            for one, other in zip(old.all_input_nodes, new.all_input_nodes, strict=True):
                self.pair(one, other)

    def undo(self, node: Node, sites: Sequence[Site], scales: Sequence[float], *, stays: bool) -> None:
        """Put layers in the place of the parts of a value.

        Args:
            node: Gives the value.
            sites: The layers, in the original.
            scales: With what their outputs are multiplied in the value.
            stays: Whether the node is for the first of them, and not that layer itself.
        """
        starts = accumulate((site.spec.out_channels for site in sites), initial=0)
        parts = {part.args[2]: part for part in node.users}
        before = {each.name: each for each in self._original.graph.nodes}
        for site, start, scale in zip(sites, starts, scales, strict=False):
            part = parts[start]
            value = part if scale == 1 else next(iter(part.users))
            if stays and site is sites[0]:
                layer, node.meta = node, dict(part.meta)
            else:
                with self._gm.graph.inserting_before(part):
                    layer = self._copied(before[site.calls[0].node.name], is_there=False)
            value.replace_all_uses_with(layer)
            for gone in dict.fromkeys((value, part)):
                self._gm.graph.erase_node(gone)
        if not stays:
            self._gm.graph.erase_node(node)
            self._gm.delete_submodule(str(node.target))
        for old, new in self._back.items():
            if new.op == "call_module":
                self._gm.add_submodule(str(new.target), self._original.get_submodule(str(old.target)))
            elif new.op == "get_attr":
                store(self._gm, str(new.target), _get_attr(self._original, str(old.target)))
        self._back.clear()

    def _copied(self, node: Node, *, is_there: bool = True) -> Node:
        """A node of the original, with what it needs and is not there."""
        found = self._there.get(node.name) if is_there else None
        if found is not None and not found._erased:
            return found
        for each in node.all_input_nodes:
            self._there[each.name] = self._copied(each)
        copied: Node = self._gm.graph.node_copy(node, lambda each: self._there[each.name])
        self._there[node.name] = self._back[node] = copied
        return copied


class _Parting:
    """Gives each layer the rows of a joint chain's last stage that are its own."""

    def __init__(self, gm: GraphModule, replacer: Replacer) -> None:
        self._gm, self._replacer = gm, replacer
        self.places: dict[str, str] = {}
        self.stages: dict[str, Stage] = {}

    def part(self, chain: Sequence[Site], sites: Sequence[Site], scales: Sequence[float]) -> None:
        """Put one stage for each of some layers behind those that they share.

        Args:
            chain: The joint chain's stages; the last one stands for the first layer by now.
            sites: The layers, of which the others stand in the graph.
            scales: With what their outputs are multiplied in the last stage.
        """
        last = chain[-1]
        node, end = last.calls[0].node, last.name.rpartition(".")[2]
        for (start, stop), site, scale in zip(_bounds(sites), sites, scales, strict=True):
            weight = _unscaled(last.weight[start:stop], scale)
            bias = None if last.bias is None else _unscaled(last.bias[start:stop], scale)
            if bias is not None and site.bias is None and not bool(bias.any()):
                bias = None
            stage = Stage(end, replace(last.spec, out_channels=stop - start), weight, bias)
            self.stages[site.name] = stage
            if site is sites[0]:
                module = stage_module(
                    stage,
                    like=last.weight,
                    trains=last.trains,
                    bias_trains=last.bias_trains,
                    training=self._gm.get_submodule(last.name).training,
                )
                self._gm.set_submodule(last.name, module)
                continue
            source = site.calls[0].source
            place = self.places[site.name] = self._replacer.replace(site, [[stage]])
            calls = (each for each in self._gm.graph.nodes if each.op == "call_module")
            next(each for each in calls if each.target == f"{place}.{end}").args = (node.all_input_nodes[0],)
            remove_unread(source)


def _rows(outcome: Applied, chain: Sequence[Site], sites: Sequence[Site], parting: _Parting) -> list[Applied]:
    """What is to be known of each layer; the first has the shared stages."""
    shared, shared_names = chain[:-1], outcome.stage_names[:-1]
    specs = [StageSpec(name, stage.spec) for name, stage in zip(outcome.stages, chain, strict=True)]
    rows: list[Applied] = []
    for site in sites:
        stage = parting.stages[site.name]
        bias = 0 if stage.bias is None else stage.bias.numel()
        weights = [*(each.weight for each in shared), stage.weight]
        own = replace(specs[-1], spec=stage.spec)
        rows.append(
            replace(
                outcome,
                site=site.name,
                layer=str(site.spec),
                relative_error=relative_error(site.weight, composed([*specs[:-1], own], weights)),
                params_before=site.params,
                params_after=own.spec.params + bias,
                macs_before=site.macs,
                macs_after=own.spec.macs,
                stages=outcome.stages[-1:],
                chain="" if (place := parting.places.get(site.name, site.name)) == site.name else place,
                shares=tuple(other.name for other in sites if other is not site),
                before_own=shared_names,
            )
        )
    first = rows[0]
    rows[0] = replace(
        first,
        stages=outcome.stages,
        chain=outcome.chain,
        before_own=(),
        macs_after=first.macs_after + sum(each.macs for each in shared),
        params_after=first.params_after + sum(each.params for each in shared),
    )
    return rows


def _bounds(sites: Sequence[Site]) -> Iterator[tuple[int, int]]:
    """Where the outputs of each layer are among those of all."""
    return pairwise(accumulate((site.spec.out_channels for site in sites), initial=0))


def _unscaled(part: Tensor, scale: float) -> Tensor:
    wide = part.to(torch.promote_types(part.dtype, torch.float32))
    return (wide / scale).to(part.dtype)


def _parted(plan: Plan, rows: Mapping[str, Sequence[Outcome]]) -> Plan:
    """The plan with a choice for each layer in the place of that for a joint layer."""
    choices: list[Choice] = []
    for choice in plan.choices:
        for row in rows.get(choice.site, ()):
            alone = Choice(row.site, row.layer)
            shared = replace(choice, site=row.site, layer=row.layer, share=INPUT)
            choices.append(alone if isinstance(row, Skipped) else shared)
        if choice.site not in rows:
            choices.append(choice)
    return Plan(tuple(choices), plan.made_up)
