"""What passes that narrow layers share: layers in the place of others, new sizes, rows of the report."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import GraphModule, Node

from fxdecomp.chains import Stage
from fxdecomp.graphs.replacing import Replacer
from fxdecomp.layers import LayerSpec
from fxdecomp.outcomes import Narrowed
from fxdecomp.places.head_edits import edits_of
from fxdecomp.places.heads import HeadPlaces, Heads
from fxdecomp.places.states import States
from fxdecomp.sites import Site


def row_of(site: Site) -> Narrowed:
    """A layer as it is."""
    return Narrowed(site.name, str(site.spec), site.params, site.macs)


def exchange(replacer: Replacer, site: Site, spec: LayerSpec, weight: Tensor, bias: Tensor | None) -> None:
    """Put another layer in the place of one, in its type."""
    dtype = site.weight.dtype
    bias = None if bias is None else bias.to(dtype)
    replacer.replace(site, [[Stage("", spec, weight.to(dtype).contiguous(), bias)]])


def record_size(node: Node, axis: int, size: int) -> None:
    """Write down the new shape of a value."""
    recorded = node.meta.get("tensor_meta")
    node.meta.pop("val", None)
    if recorded is not None:
        shape = list(recorded.shape)
        shape[axis] = size
        node.meta["tensor_meta"] = recorded._replace(shape=torch.Size(shape), stride=())


def narrow_between(gm: GraphModule, found: HeadPlaces, place: Heads | States, kept: int) -> None:
    """Give what stands between layers the sizes of fewer channels a head, or of fewer states.

    Raises:
        ValueError: They would not come to the same places; a sentence. The graph is as it was.
    """
    edits_of(found, place, kept)
    edits = edits_of(found, place, kept, lambda node, at: _size(gm, node, at))
    for node, args in edits.args.items():
        node.args = args
    for node, size in edits.fixed.items():
        _fix(node, size)
    for node, axes in edits.axes.items():
        for axis, size in axes.items():
            record_size(node, axis, size)


def _size(gm: GraphModule, node: Node, place: int) -> Node:
    """One of the sizes that a node computes together."""
    with gm.graph.inserting_after(node):
        return gm.graph.call_function(operator.getitem, (node, place))


def _fix(node: Node, size: int) -> None:
    """Let a number be read in the place of a node."""

    def fixed(each: Node) -> Any:
        return size if each is node else each

    for user in list(node.users):
        user.args = fx.node.map_arg(user.args, fixed)
        user.kwargs = fx.node.map_arg(user.kwargs, fixed)
    node.graph.erase_node(node)
