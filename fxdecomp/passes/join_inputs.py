"""Make one layer of the layers that read one tensor, for the while of a decomposition.

    before   x -> q (Linear 64->64) -> a            after   x -> q (Linear 64->192) -> narrow -> a
             x -> k (Linear 64->64) -> b                                            -> narrow -> b
             x -> v (Linear 64->64) -> c                                            -> narrow -> c

Its weight is `[c1 W1; c2 W2; ...]`: each part is scaled so that an error of it matters as much as one of the
others, and scaled back behind. To every other pass it is a layer like any other. `PartOutputs` makes of it
again what it was, or a stage that they share and one for each.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch.fx import GraphModule, Node

from fxdecomp.chains import Stage
from fxdecomp.graphs.records import Joint, Record
from fxdecomp.graphs.replacing import Replacer, remove_unread, remove_unused
from fxdecomp.passes.base import Pass
from fxdecomp.places.shared_inputs import stacked
from fxdecomp.sites import Site, survey


@final
@dataclass(frozen=True, slots=True)
class JoinInputs(Pass):
    """Joins layers; records which, for `PartOutputs`.

    Attributes:
        joints: The layers that are joined, each at one place, in no two joints.
        notes: Sentences for the reader of the report.
    """

    name: ClassVar[str] = "join_inputs"
    joints: tuple[Joint, ...]
    notes: tuple[str, ...] = ()

    @torch.no_grad()
    def call(self, gm: GraphModule, record: Record) -> Record:
        """Put one layer in the place of the first of every joint, and its parts in those of all."""
        sites = {site.name: site for site in survey(gm).sites}
        replacer = Replacer(gm)
        added = 0
        for joint in self.joints:
            parts = [sites[name] for name in joint.names]
            added += added_biases(parts)
            _join(gm, replacer, parts, joint.scales)
        remove_unused(gm)
        notes, dropped = (*record.notes, *self.notes), record.dropped_params - added
        return replace(record, joints=self.joints, notes=notes, dropped_params=dropped)


def added_biases(sites: Sequence[Site]) -> int:
    """How many biases layers get that have none, joined with one that has."""
    lacking = [site for site in sites if site.bias is None]
    return sum(site.spec.out_channels for site in lacking) if len(lacking) < len(sites) else 0


def _join(gm: GraphModule, replacer: Replacer, sites: Sequence[Site], scales: Sequence[float]) -> None:
    first, *others = sites
    spec, weight, bias = stacked(sites, scales)
    start = 0
    for site, scale in zip(sites, scales, strict=True):
        size = site.spec.out_channels
        _part(gm, site.calls[0].node, first.calls[0].node, (-1 - spec.ndim, start, size), scale)
        start += size
    replacer.replace(first, [[Stage("", spec, weight, bias)]])
    for site in others:
        node, source = site.calls[0].node, site.calls[0].source
        gm.graph.erase_node(node)
        if node.op == "call_module":
            replacer.release(str(node.target))
        remove_unread(source)


def _part(gm: GraphModule, node: Node, whole: Node, where: tuple[int, int, int], scale: float) -> None:
    """Let a part of a value, scaled back, be read in the place of another value."""
    with gm.graph.inserting_after(node):
        part = value = gm.graph.call_function(torch.narrow, (whole, *where))
    part.meta = dict(node.meta)
    if scale != 1:
        with gm.graph.inserting_after(part):
            value = gm.graph.call_function(operator.mul, (part, 1 / scale))
        value.meta = dict(node.meta)
    node.replace_all_uses_with(value, delete_user_cb=lambda user: user is not part)
