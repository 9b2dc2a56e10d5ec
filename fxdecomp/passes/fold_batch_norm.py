"""Fold each BatchNorm into the Conv or Linear before it.

    before   x -> conv(W, b) -> batch_norm(mean, var, gamma, beta) -> y
    after    x -> conv(s W, s (b - mean) + beta) -> y,    s = gamma / sqrt(var + eps)

A BatchNorm stays where folding would change the function: batch statistics, another axis, an output that is
also used elsewhere, a layer applied at several places which are not all followed by the same BatchNorm.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

from torch.fx import GraphModule, Node

from fxdecomp.chains import Stage
from fxdecomp.graphs.records import Record
from fxdecomp.graphs.replacing import Replacer, remove_unused
from fxdecomp.outcomes import Folded
from fxdecomp.passes.base import Pass
from fxdecomp.sites import Call, Site, survey
from fxdecomp.sites.base import shape_of
from fxdecomp.sites.constants import Constants
from fxdecomp.sites.norms import LEGIT, Norm, norms_of


@final
@dataclass(frozen=True, slots=True)
class FoldBatchNorm(Pass):
    """Folds BatchNorms; records a `Folded` for each, with the reason where it was left in the graph."""

    name: ClassVar[str] = "fold_batch_norm"

    def call(self, gm: GraphModule, record: Record) -> Record:
        """Fold every BatchNorm that can be folded without changing the function."""
        before = survey(gm).params
        folds: dict[str, Folded] = {}
        while _fold_round(gm, folds):  # a BatchNorm behind another one is next to the layer by then
            pass
        remove_unused(gm)
        earlier = tuple(fold for fold in record.folds if fold.norm not in folds)
        dropped = record.dropped_params + before - survey(gm).params
        return replace(record, folds=(*earlier, *folds.values()), dropped_params=dropped)


def _fold_round(gm: GraphModule, folds: dict[str, Folded]) -> bool:
    """Fold every BatchNorm that stands right behind a layer, and say whether there was one.

    Args:
        gm: The graph, edited in place.
        folds: What became of each BatchNorm so far; one that stayed in one round may go in the next.
    """
    constants = Constants(gm)
    norms = norms_of(gm, constants)
    sites = survey(gm).sites if norms else ()
    owner = {call.node: site for site in sites for call in site.calls}
    into: dict[Node, str] = {}
    for name in {norm.name for norm in norms.values()} & folds.keys():
        folds[name] = replace(folds[name], reason="")
    for node, norm in norms.items():
        site = owner.get(norm.source) if isinstance(norm.source, Node) else None
        reason = norm.reason or _obstacle(norm, site, norms)
        if not reason and site is not None:
            into[node] = site.name
        folds[norm.name] = _merged(norm.name, folds.get(norm.name), into.get(node), reason)
    replacer = Replacer(gm)
    folded = False
    for site in sites:
        after = [next(iter(call.node.users)) for call in site.calls if len(call.node.users) == 1]
        if len(after) == len(site.calls) and all(into.get(user) == site.name for user in after):
            _fold(replacer, site, norms[after[0]], after)
            folded = True
    called = {str(node.target) for node in gm.graph.nodes if node.op == "call_module"}
    for name in {str(node.target) for node in norms if node.op == "call_module"} - called:
        replacer.release(name)
    return folded


def _merged(name: str, earlier: Folded | None, site: str | None, reason: str) -> Folded:
    """What became of a BatchNorm at all its places so far: the layers it went into, the first reason."""
    if earlier is None:
        return Folded(name, site, reason)
    names = dict.fromkeys([*(earlier.into or "").split(", "), site or ""])
    return Folded(name, ", ".join(n for n in names if n) or None, earlier.reason or reason)


def _obstacle(norm: Norm, site: Site | None, norms: dict[Node, Norm]) -> str:
    """Why a BatchNorm cannot be folded, empty where it can."""
    if site is None:
        return "no Conv or Linear that can be changed stands before it"
    ndim = len(shape_of(site.calls[0].node) or ())
    if site.spec.is_linear and ndim != 2:
        return f"{site.name} is a Linear over more than one axis, and the BatchNorm works on another one"
    if not site.spec.is_linear and ndim != site.spec.ndim + 2:
        return f"{site.name} has no batch axis, so the BatchNorm works on another one"
    for call in site.calls:
        users = list(call.node.users)
        if len(users) != 1:
            return f"the output of {site.name} is also used elsewhere"
        other = norms.get(users[0])
        if other is None or other.key != norm.key:
            return f"{site.name} is applied at {len(site.calls)} places, not all followed by this BatchNorm"
    return ""


def _fold(replacer: Replacer, site: Site, norm: Norm, after: list[Node]) -> None:
    scale = norm.scale.to(site.weight.device)
    weight = site.weight.double() * scale.reshape(-1, *(1,) * (site.weight.ndim - 1))
    bias = norm.shift.to(site.weight.device)
    if site.bias is not None:
        bias = bias + scale * site.bias.double()
    for node in after:
        value = next(iter(node.users)) if node.target is LEGIT else node
        value.replace_all_uses_with(next(c.node for c in site.calls if node in c.node.users))
        for gone in dict.fromkeys((value, node)):
            gone.graph.erase_node(gone)
    dtype = site.weight.dtype
    folded = Stage("", site.spec, weight.to(dtype), bias.to(dtype))
    replacer.replace(site, [[folded_at(folded, call)] for call in site.calls])


def folded_at(stage: Stage, call: Call) -> Stage:
    """The same layer on the sizes of one call."""
    return Stage(stage.name, call.spec, stage.weight, stage.bias)
