"""`survey`: every Conv and Linear of a graph exactly once, as a site or as a reason."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.graph_module import _get_attr

from fxdecomp.errors import FxdecompError
from fxdecomp.outcomes import Reason, Skipped
from fxdecomp.sites.base import Call, Reading, Refusal, Site, shape_of, sized
from fxdecomp.sites.constants import Constants
from fxdecomp.sites.functions import is_layer_call, read_function_call
from fxdecomp.sites.modules import Layer, read_module_call


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """The layers of a graph: those that a chain could replace, and the others with their reasons."""

    sites: tuple[Site, ...]
    skipped: tuple[Skipped, ...]


def survey(gm: GraphModule) -> Survey:
    """Find every Conv and Linear of a graph. Cost: linear in the number of nodes.

    Raises:
        FxdecompError: No node of the graph has a recorded shape.
    """
    constants = Constants(gm)
    readings: dict[tuple[object, ...], list[tuple[Node, Reading]]] = defaultdict(list)
    skipped: dict[str, Skipped] = {}
    called = {str(node.target) for node in gm.graph.nodes if node.op == "call_module"}
    for node in gm.graph.nodes:
        reading = read_node(gm, node, constants)
        if isinstance(reading, Refusal):
            name = _unique(reading.name, node, called)
            skipped[name] = Skipped(name, reading.layer, reading.reason, reading.detail)
        elif reading is not None:
            readings[reading.key].append((node, reading))
        elif node.op == "call_module":
            skipped |= {item.site: item for item in _inside_leaf(gm, str(node.target))}
        elif node.op == "get_attr":
            branch = _get_attr(gm, str(node.target))
            if isinstance(branch, GraphModule):
                skipped |= {item.site: item for item in _inside_branch(branch, str(node.target))}
    if readings and all(shape_of(node) is None for node in gm.graph.nodes):
        raise FxdecompError("the graph has no recorded shapes; use fxdecomp.trace(gm, example_inputs) first")
    uses = _uses(gm, constants)
    sites: dict[str, Site] = {}
    for group in readings.values():
        node, first = group[0]
        if node.op == "call_module" and first.name in skipped:
            continue  # another of its calls cannot be replaced
        name = _unique(first.name, node, called | sites.keys() | skipped.keys())
        found = _site(name, group, uses)
        if isinstance(found, Site):
            sites[name] = found
        else:
            skipped[name] = found
    return Survey(tuple(sites.values()), tuple(skipped.values()))


def read_node(gm: GraphModule, node: Node, constants: Constants) -> Reading | Refusal | None:
    """What one node says of the layer that it applies, None where it applies none."""
    if node.op == "call_module":
        return read_module_call(gm, node)
    if node.op == "call_function":
        return read_function_call(node, constants)
    return None


def _site(name: str, group: list[tuple[Node, Reading]], uses: dict[int, set[Node]]) -> Site | Skipped:
    nodes = {node for node, _ in group}
    first = group[0][1]
    weight, bias, geometry = first.weight, first.bias, first.geometry

    def skip(reason: Reason, detail: str = "", macs: int = 0) -> Skipped:
        params = weight.numel() + (0 if bias is None else bias.numel())
        return Skipped(name, str(geometry), reason, detail, params, macs)

    refused = unsupported(weight)
    if refused:
        return skip(Reason.UNSUPPORTED_TENSOR, refused)
    specs = [sized(reading.geometry, shape_of(reading.source)) for _, reading in group]
    known = [spec for spec in specs if spec is not None]
    if len(known) < len(specs):
        return skip(Reason.UNKNOWN_SHAPE)
    macs = sum(spec.macs for spec in known)
    others = set().union(*(uses[root] for root in first.roots)) - nodes
    if others:
        names = ", ".join(sorted(other.name for other in others)[:3])
        return skip(Reason.TIED_WEIGHT, f"it is used by {names}", macs)
    calls = tuple(
        Call(node, node.all_input_nodes.index(reading.source), spec)
        for (node, reading), spec in zip(group, known, strict=True)
    )
    bias_trains = first.trains if bias is None else first.bias_trains
    return Site(
        name, calls, weight.detach(), None if bias is None else bias.detach(), first.trains, bias_trains
    )


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


def _inside_leaf(gm: GraphModule, target: str) -> list[Skipped]:
    found = []
    for name, module in gm.get_submodule(target).named_modules(prefix=target):
        if isinstance(module, Layer):
            params = sum(parameter.numel() for parameter in module.parameters())
            holder = type(gm.get_submodule(target)).__name__
            detail = f"{target} ({holder})" if name != target else "its forward is not torch's own"
            found.append(Skipped(name, type(module).__name__, Reason.INSIDE_LEAF, detail, params))
    return found


def _inside_branch(branch: GraphModule, path: str) -> list[Skipped]:
    """The layers of a branch of `torch.cond` and its like, whose weights come to it as inputs."""
    found = []
    for node in branch.graph.nodes:
        if is_layer_call(node):
            detail = f"{path}, a branch of the graph"
            found.append(Skipped(f"{path}.{node.name}", str(node.target), Reason.INSIDE_LEAF, detail))
        elif node.op == "get_attr" and isinstance(deeper := _get_attr(branch, str(node.target)), GraphModule):
            found += _inside_branch(deeper, f"{path}.{node.target}")
    return found


def _unique(name: str, node: Node, taken: AbstractSet[str]) -> str:
    """The name of a node's layer; a module keeps its own."""
    return f"{name}_{node.name}" if node.op != "call_module" and name in taken else name
