"""Which part of a graph is still the file that it was read from, and which values it computes anew.

    file     x -> conv -> norm -> relu -> y
    graph    x -> conv.in -> conv.out -> relu -> y        relu is the same; conv.out stands for norm

Nodes that are the same keep their names through every edit of this package. Where one of them takes another
input than it did, that input stands for the file's value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.graph_module import _get_attr

from fxdecomp.graphs.origins import LAYER, VALUE


class NotSpliceable(Exception):  # noqa: N818 - it becomes a note, or one error about the whole export
    """Why a graph's changes cannot be put into the file that it was read from; the reason in words."""


@dataclass(slots=True, eq=False)
class Match:
    """What a graph shares with the file that it was read from.

    Attributes:
        named: The file's value that a node of the graph computes as it did.
        same: Nodes of the graph that are as they were, with the node of the original.
        stands_for: The file's values that are computed anew, with the node of the graph that does it.
        retrained: Recurrent layers with other weights: names of the file's weights, and the module.
        narrowed: Those with a narrower input or fewer states: names of the file's weights and input, with the
            node.
    """

    named: dict[Node, str] = field(default_factory=dict)
    same: dict[Node, Node] = field(default_factory=dict)
    stands_for: dict[str, Node] = field(default_factory=dict)
    retrained: dict[tuple[str, ...], nn.Module] = field(default_factory=dict)
    narrowed: dict[tuple[tuple[str, ...], str], Node] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether nothing was changed."""
        return not (self.stands_for or self.retrained or self.narrowed)


def matched(gm: GraphModule, original: GraphModule) -> Match:
    """Compare a graph with the graph that its file makes.

    Args:
        gm: The graph.
        original: From `Origin.graph`.

    Raises:
        NotSpliceable: The graph's own nodes do not stand for values of the file.
    """
    match = Match()
    before = {node.name: node for node in original.graph.nodes if node.op != "output"}
    end = next(node for node in original.graph.nodes if node.op == "output")  # a layer may be called `output`
    wanted: dict[Node, Node] = {}
    whole = _narrowed(gm, original)
    for node in gm.graph.nodes:
        other = end if node.op == "output" else whole.get(node) or before.get(node.name)
        if other is None or not (node in whole or _is_alike(gm, node, original, other, match)):
            continue
        taken = slice(None)
        if node in whole and node.target != other.target:
            taken = slice(1, None)  # its input stands for nothing of the file
        elif _parts_directions(node, whole):
            taken = slice(1)  # into as many states as there are
        pairs = _pairs((node.args[taken], node.kwargs), (other.args[taken], other.kwargs))
        if pairs is None:
            continue
        changed = [(new, old) for new, old in pairs if match.same.get(new) is not old]
        if node.op != "output" and not all(VALUE in old.meta for _, old in changed):
            continue  # what it takes has no name in the file: it is computed anew as well
        for new, old in changed:
            if wanted.setdefault(old, new) is not new:
                raise NotSpliceable(f"two nodes of the graph stand for {old.name!r}: {new.name!r} is one")
        match.same[node] = other
        if node in whole:
            source = other.args[0]
            assert isinstance(source, Node)  # it is how such a layer is called
            match.narrowed[tuple(other.meta[LAYER]), _name_of(source)] = node
        if VALUE in other.meta:
            match.named[node] = other.meta[VALUE]
    if not any(node.op == "output" for node in match.same):
        raise NotSpliceable("its outputs are not those of the file")
    _check_replaced(gm, match, wanted)
    match.stands_for = {_name_of(old): new for old, new in wanted.items()}
    return match


def _narrowed(gm: GraphModule, original: GraphModule) -> dict[Node, Node]:
    """Recurrent layers of other sizes, or the last stages of their chains, with the call in the original."""
    found: dict[Node, Node] = {}
    calls = [node for node in original.graph.nodes if node.op == "call_module" and node.meta.get(LAYER)]
    for node in gm.graph.nodes:
        module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, nn.RNNBase):
            continue
        own = str(node.target)
        for other in calls:
            before = original.get_submodule(str(other.target))
            if other in found.values() or not isinstance(before, nn.RNNBase):
                continue
            if not _is_narrower(module, before):
                continue
            fewer = own == other.target and module.hidden_size < before.hidden_size
            if fewer or own.rpartition(".")[0] == other.target:
                found[node] = other
                break
    return found


def _is_narrower(module: nn.RNNBase, before: nn.RNNBase) -> bool:
    """Whether a layer is another one but for its weights, the size of its input and the number of states."""
    keys = ("num_layers", "batch_first", "bidirectional", "proj_size")
    return type(module) is type(before) and all(getattr(module, k) == getattr(before, k) for k in keys)


def _parts_directions(node: Node, whole: Mapping[Node, Node]) -> bool:
    """Whether a node parts what a recurrent layer of other sizes gives by direction, as files have it."""
    taken = node.args[0] if node.args else None
    if node.target != "unflatten" or not isinstance(taken, Node):
        return False
    return not whole.keys().isdisjoint(taken.all_input_nodes)


def _name_of(node: Node) -> str:
    if VALUE not in node.meta:
        raise NotSpliceable(f"{node.name!r} is no value of the file")
    return str(node.meta[VALUE])


def _check_replaced(gm: GraphModule, match: Match, wanted: Mapping[Node, Node]) -> None:
    """Raise where a value is wanted as it was, and as it is now."""
    read = {each for node in gm.graph.nodes for each in node.all_input_nodes}
    kept = {match.same[each] for each in read if each in match.same}
    both = sorted(old.name for old in wanted.keys() & kept)
    if both:
        raise NotSpliceable(f"{both[0]!r} is used as it was, and replaced")


def _is_alike(gm: GraphModule, node: Node, original: GraphModule, other: Node, match: Match) -> bool:
    """Whether two nodes do the same to what they are given."""
    if (node.op, node.target) != (other.op, other.target):
        return False
    if node.op == "get_attr":
        return _equal(_get_attr(gm, str(node.target)), _get_attr(original, str(other.target)))
    if node.op == "call_module":
        modules = gm.get_submodule(str(node.target)), original.get_submodule(str(other.target))
        return _is_alike_module(*modules, tuple(other.meta.get(LAYER, ())), match)
    return True


def _is_alike_module(module: nn.Module, before: nn.Module, weights: tuple[str, ...], match: Match) -> bool:
    """Whether two modules do the same; recurrent layers may have other weights, which `match` notes."""
    if type(module) is not type(before) or repr(module) != repr(before):
        return False
    tensors, others = (list(each.state_dict().values()) for each in (module, before))
    if len(tensors) == len(others) and all(map(_equal, tensors, others)):
        return True
    if weights and len(tensors) == len(others):
        match.retrained[weights] = module
        return True
    return False


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        plain = a.dtype == b.dtype and a.shape == b.shape
        return plain and (a.data_ptr() == b.data_ptr() or _same_bits(a.detach().cpu(), b.detach().cpu()))
    return bool(a == b)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one type and shape hold the same, NaN included."""
    if torch.equal(a, b):
        return True
    return a.is_floating_point() and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _pairs(a: Any, b: Any) -> list[tuple[Node, Node]] | None:
    """The nodes at the same places of two structures, None where the structures differ otherwise."""
    if isinstance(a, Node) or isinstance(b, Node):
        return [(a, b)] if isinstance(a, Node) and isinstance(b, Node) else None
    if isinstance(a, slice) and isinstance(b, slice):
        return _pairs((a.start, a.stop, a.step), (b.start, b.stop, b.step))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return _pairs(tuple(a.values()), tuple(b.values())) if list(a) == list(b) else None
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        if len(a) != len(b):
            return None
        parts = [_pairs(x, y) for x, y in zip(a, b, strict=True)]
        found = [pair for part in parts if part is not None for pair in part]
        return found if all(part is not None for part in parts) else None
    return [] if type(a) is type(b) and a == b else None
