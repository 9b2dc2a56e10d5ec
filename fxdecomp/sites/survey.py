"""`survey`: everything of a graph that holds weights exactly once, as a site or as a reason."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.graph_module import _get_attr

from fxdecomp.errors import FxdecompError
from fxdecomp.outcomes import Skipped
from fxdecomp.reasons import Reason
from fxdecomp.sites.base import Call, Reading, Refusal, Site, shape_of, sized
from fxdecomp.sites.constants import Constants
from fxdecomp.sites.functions import is_layer_call, read_function_call
from fxdecomp.sites.heads import heads_of
from fxdecomp.sites.holders import holders, input_free, stored_tensors_of
from fxdecomp.sites.ledger import Ledger
from fxdecomp.sites.modules import Layer, read_module_call
from fxdecomp.sites.opaque import Opaque
from fxdecomp.sites.recurrent import read_recurrent_call


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """What holds weights in a graph.

    Attributes:
        sites: The Conv and Linear layers that a chain could replace.
        skipped: Those that it could not.
        others: Recurrent layers, embeddings, norms and all else, see `fxdecomp.sites.holders`.
        heads: The sites that no other layer stands behind, see `fxdecomp.sites.heads`.
    """

    sites: tuple[Site, ...]
    skipped: tuple[Skipped, ...]
    others: tuple[Skipped, ...] = ()
    heads: frozenset[str] = frozenset()

    @property
    def params(self) -> int:
        """Number of parameters, each tensor counted once."""
        return sum(site.params for site in self.sites) + sum(s.params for s in (*self.skipped, *self.others))


def survey(gm: GraphModule) -> Survey:
    """Find every layer of a graph. Cost: linear in the number of nodes.

    A tensor that several layers share is counted with the first of them that is met.

    Raises:
        FxdecompError: No node of the graph has a recorded shape.
    """
    constants, ledger, free = Constants(gm), Ledger(gm), input_free(gm)
    layers: set[Node] = set()
    opaque: set[Node] = set()
    readings: dict[tuple[object, ...], list[tuple[Node, Reading]]] = defaultdict(list)
    skipped: dict[str, Skipped] = {}
    called = {str(node.target) for node in gm.graph.nodes if node.op == "call_module"}
    for node in gm.graph.nodes:
        reading = read_node(gm, node, constants)
        if isinstance(reading, Refusal):
            layers.add(node)
            name = _unique(reading.name, node, called)
            stored = (tensor for _, tensor in stored_tensors_of(gm, node, free))
            params = ledger.take_whole(tensor for tensor in stored if isinstance(tensor, nn.Parameter))
            skipped[name] = _refused(name, reading, node, params, skipped.get(name))
        elif reading is not None:
            layers.add(node)
            readings[reading.key].append((node, reading))
        elif node.op == "call_module":
            found_inside = _inside_leaf(gm, str(node.target), ledger, skipped)
            skipped |= {item.site: item for item in found_inside}
            if found_inside:
                opaque.add(node)
        elif node.op == "get_attr":
            branch = _get_attr(gm, str(node.target))
            if isinstance(branch, GraphModule):
                given = _branch_weights(gm, node, branch, free)
                found_inside = _inside_branch(branch, str(node.target), given, ledger)
                skipped |= {item.site: item for item in found_inside}
    if readings and all(shape_of(node) is None for node in gm.graph.nodes):
        raise FxdecompError("the graph has no recorded shapes; use fxdecomp.trace(gm, example_inputs) first")
    uses = _uses(gm, constants)
    sites: dict[str, Site] = {}
    for group in readings.values():
        node, first = group[0]
        if node.op == "call_module" and first.name in skipped:
            skipped[first.name] = _also_called(skipped[first.name], group)  # not all can be replaced
            continue
        name = _unique(first.name, node, called | sites.keys() | skipped.keys())
        found = _site(name, group, uses, ledger)
        if isinstance(found, Site):
            sites[name] = found
        else:
            skipped[name] = found
    others = holders(gm, free, ledger, layers, sites.keys() | skipped.keys())
    heads = heads_of(gm, sites.values(), layers | opaque)
    return Survey(tuple(sites.values()), tuple(skipped.values()), others, heads)


def read_node(gm: GraphModule, node: Node, constants: Constants) -> Reading | Refusal | None:
    """What one node says of the layer that it applies, None where it applies none."""
    if node.op == "call_module":
        return read_module_call(gm, node) or read_recurrent_call(gm, node)
    if node.op == "call_function":
        return read_function_call(node, constants)
    return None


def _refused(name: str, refusal: Refusal, node: Node, params: int, earlier: Skipped | None) -> Skipped:
    """The outcome of a layer that cannot be decomposed, with its cost at this call and at earlier ones."""
    macs = 0
    if refusal.geometry is not None and node.all_input_nodes:
        spec = sized(refusal.geometry, shape_of(node.all_input_nodes[0]))
        macs = 0 if spec is None else spec.macs
    if earlier is not None:
        params, macs = params + earlier.params, macs + earlier.macs
    return Skipped(name, refusal.layer, refusal.reason, refusal.detail, params, macs)


def _also_called(refused: Skipped, group: list[tuple[Node, Reading]]) -> Skipped:
    """A refused layer with the cost of its calls that could have been replaced."""
    specs = [sized(reading.geometry, shape_of(reading.source)) for _, reading in group]
    return replace(refused, macs=refused.macs + sum(spec.macs for spec in specs if spec is not None))


def _site(
    name: str, group: list[tuple[Node, Reading]], uses: dict[int, set[Node]], ledger: Ledger
) -> Site | Skipped:
    nodes = {node for node, _ in group}
    first = group[0][1]
    weight, bias, geometry = first.weight, first.bias, first.geometry

    params = ledger.take(first.roots, weight.numel())
    params += 0 if bias is None else ledger.take(first.bias_roots, bias.numel())
    params += ledger.take_whole(first.besides)

    def skip(reason: Reason, detail: str = "", macs: int = 0) -> Skipped:
        return Skipped(name, str(geometry), reason, detail, params, macs)

    refused = unsupported(weight)
    if refused:
        return skip(Reason.UNSUPPORTED_TENSOR, refused)
    specs = [sized(reading.geometry, shape_of(reading.source)) for _, reading in group]
    known = [spec for spec in specs if spec is not None]
    if len(known) < len(specs):
        return skip(Reason.UNKNOWN_SHAPE)
    macs = sum(spec.macs for spec in known)
    parts = {*first.roots, *map(id, first.besides)}
    others = set().union(*(uses[part] for part in parts)) - nodes
    if others:
        names = ", ".join(sorted(other.name for other in others)[:3])
        return skip(Reason.TIED_WEIGHT, f"it is used by {names}", macs)
    calls = tuple(
        Call(node, node.all_input_nodes.index(reading.source), spec)
        for (node, reading), spec in zip(group, known, strict=True)
    )
    bias_trains = first.trains if bias is None else first.bias_trains
    plain_bias = None if bias is None else bias.detach()
    roots = frozenset(first.bias_roots)
    return Site(name, calls, weight.detach(), plain_bias, params, first.trains, bias_trains, roots)


def unsupported(weight: Tensor) -> str:
    """Why a tensor cannot be factorised, empty where it can."""
    if type(weight) not in (Tensor, nn.Parameter, nn.Buffer):
        return f"it is a {type(weight).__name__}"
    if weight.is_meta:
        return "it is on the meta device and holds no numbers; load the weights first"
    if weight.layout is not torch.strided or weight.is_quantized:
        return f"it is stored as {weight.layout if not weight.is_quantized else weight.dtype}"
    return "" if weight.is_floating_point() else f"it holds {weight.dtype}"


def _uses(gm: GraphModule, constants: Constants) -> dict[int, set[Node]]:
    """For each stored tensor, the nodes that use it."""
    uses: dict[int, set[Node]] = defaultdict(set)
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            uses[id(_get_attr(gm, str(node.target)))].update(constants.consumers(node))
        elif node.op == "call_module":
            for parameter in gm.get_submodule(str(node.target)).parameters():
                uses[id(parameter)].add(node)
    return uses


def _inside_leaf(gm: GraphModule, target: str, ledger: Ledger, known: Container[str]) -> list[Skipped]:
    """The Conv and Linear layers inside a module that the graph calls; none that are known already."""
    found = []
    leaf = gm.get_submodule(target)
    if isinstance(leaf, Opaque):
        return [
            Skipped(
                f"{target}.{each.name}",
                each.layer,
                Reason.INSIDE_LEAF,
                f"{target} ({leaf.contents})",
                each.params,
            )
            for each in leaf.layers
            if f"{target}.{each.name}" not in known
        ]
    for name, module in leaf.named_modules(prefix=target):
        if isinstance(module, Layer) and name not in known:
            params = ledger.take_whole(module.parameters())
            holder = type(leaf).__name__
            detail = f"{target} ({holder})" if name != target else "its forward is not torch's own"
            found.append(Skipped(name, type(module).__name__, Reason.INSIDE_LEAF, detail, params))
    return found


def _branch_weights(
    gm: GraphModule, node: Node, branch: GraphModule, free: AbstractSet[Node]
) -> dict[Node, Tensor]:
    """The stored tensors that a branch of `torch.cond` gets as its inputs, by its placeholders."""
    operators = [user for user in node.users if isinstance(user.args[-1], tuple | list)]
    operands = [leaf for user in operators[:1] for leaf in user.args[-1]]  # type: ignore[union-attr]
    places = [each for each in branch.graph.nodes if each.op == "placeholder"]
    if len(operands) != len(places):
        return {}
    stored = {leaf for leaf in operands if isinstance(leaf, Node) and leaf.op == "get_attr" and leaf in free}
    pairs = zip(places, operands, strict=True)
    return {place: _get_attr(gm, str(leaf.target)) for place, leaf in pairs if leaf in stored}  # type: ignore[union-attr]


def _inside_branch(
    branch: GraphModule, path: str, given: Mapping[Node, Tensor], ledger: Ledger
) -> list[Skipped]:
    """The layers of a branch of `torch.cond` and its like, whose weights come to it as inputs."""
    found = []
    for node in branch.graph.nodes:
        if is_layer_call(node):
            detail = f"{path}, a branch of the graph"
            params = ledger.take_whole(given[each] for each in node.all_input_nodes if each in given)
            found.append(Skipped(f"{path}.{node.name}", str(node.target), Reason.INSIDE_LEAF, detail, params))
        elif node.op == "get_attr" and isinstance(deeper := _get_attr(branch, str(node.target)), GraphModule):
            found += _inside_branch(deeper, f"{path}.{node.target}", {}, ledger)
    return found


def _unique(name: str, node: Node, taken: AbstractSet[str]) -> str:
    """The name of a node's layer; a module keeps its own."""
    return f"{name}_{node.name}" if node.op != "call_module" and name in taken else name
