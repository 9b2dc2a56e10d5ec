"""Replaces layers of a graph module, in place, and clears away what nothing uses any more."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.graph_module import _get_attr
from torch.fx.node import Argument

from fxdecomp.chains import Stage
from fxdecomp.graphs.copies import stage_module
from fxdecomp.layers import LayerSpec
from fxdecomp.sites import Call, Site
from fxdecomp.sites.constants import Constants, writes


@final
class Replacer:
    """Replaces layers of one graph module, which the caller recompiles when it is through.

    A layer's modules and tensors may have other users (`self.fc(x) + self.fc.bias`): those stay where they
    are. Cost: linear in the number of nodes, for all layers together.
    """

    def __init__(self, gm: GraphModule) -> None:
        self._gm = gm
        self._constants = Constants(gm)
        self._below: dict[str, list[Node]] = defaultdict(list)
        for node in gm.graph.nodes:
            if node.op in ("get_attr", "call_module"):
                parts = str(node.target).split(".")
                for length in range(1, len(parts)):
                    self._below[".".join(parts[:length])].append(node)

    def replace(self, site: Site, chains: Sequence[Sequence[Stage]]) -> str:
        """Replace every call of a site by nodes that call its stages.

        The stages' modules sit under the site's name (`features.3.core`); a stage without a name takes the
        site's own place. Constants that nothing uses any more are left to `remove_unused`.

        Args:
            site: A layer of the graph module.
            chains: The stages at each call, in the order of `site.calls`: the same weights, on each call's
                sizes.

        Returns:
            The name under which the stages sit: the site's, unless something else stands there.
        """
        calls = {call.node for call in site.calls}
        own = {str(node.target) for node in calls if node.op == "call_module"}
        before = self._gm.get_submodule(site.name) if own else None
        training = self._gm.training if before is None else before.training
        prefix = site.name
        while not self._is_free(prefix, chains[0], own, calls):
            prefix += "_chain"
        for call, stages in zip(site.calls, chains, strict=True):
            _insert(self._gm, call, [(_join(prefix, stage.name), stage.spec) for stage in stages])
        for name in own:
            self.release(name)
        for stage in chains[0]:
            module = stage_module(
                stage,
                like=site.weight,
                trains=site.trains,
                bias_trains=site.bias_trains,
                training=training,
                before=before,
            )
            self._gm.add_submodule(_join(prefix, stage.name), module)
        return prefix

    def keeps_name(self, site: Site) -> bool:
        """Whether a layer in the place of a site could bear its name, and nothing else stands there."""
        calls = {call.node for call in site.calls}
        found = _at(self._gm, site.name)
        is_own = any(node.op == "call_module" and node.target == site.name for node in calls)
        return (is_own or found is None or type(found) is nn.Module) and not self._is_shared(site.name, calls)

    def release(self, path: str) -> None:
        """Delete a module that is called no more, but for what other nodes take of it."""
        kept = {str(node.target) for node in self._below[path] if self._is_used(node, set())}
        values = {target: _get_attr(self._gm, target) for target in sorted(kept)}
        self._gm.delete_submodule(path)
        for target, value in values.items():
            store(self._gm, target, value)

    def _is_free(self, prefix: str, stages: Sequence[Stage], own: set[str], calls: set[Node]) -> bool:
        """Whether the stages can sit there without taking the place of what others use."""
        if prefix in own:
            return not self._is_shared(prefix, calls)
        found = _at(self._gm, prefix)
        if found is None:
            return True
        if type(found) is not nn.Module:  # else it only holds names, as `torch.export` leaves behind
            return False
        return all(
            _at(found, stage.name) is None if stage.name else not self._is_shared(prefix, calls)
            for stage in stages
        )

    def _is_shared(self, path: str, calls: set[Node]) -> bool:
        """Whether anything but these calls uses what is stored below a path."""
        return any(self._is_used(node, calls) for node in self._below[path])

    def _is_used(self, node: Node, besides: set[Node]) -> bool:
        """Whether a node reaches anything but the nodes named, through constants."""
        if node._erased:
            return False
        if node.op == "call_module":
            return node not in besides
        return any(user not in besides for user in self._constants.consumers(node))


def _at(module: nn.Module, path: str) -> object:
    """What a path leads to, None where it leads nowhere."""
    value: object = module
    for part in path.split("."):
        value = getattr(value, part, None)
    return value


def store(gm: GraphModule, path: str, value: object) -> None:
    """Put a module or a tensor where a path leads, in containers made on the way."""
    *owners, name = path.split(".")
    holder: nn.Module = gm
    for owner in owners:
        if getattr(holder, owner, None) is None:
            holder.add_module(owner, nn.Module().train(gm.training))
        holder = getattr(holder, owner)
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        holder.register_buffer(name, value)
    else:
        setattr(holder, name, value)


def _insert(gm: GraphModule, call: Call, stages: list[tuple[str, LayerSpec]]) -> None:
    value = call.source
    with gm.graph.inserting_before(call.node):
        for target, spec in stages:
            args = (value,) if spec.recurrence is None else (value, *_states(call.node))
            node = gm.graph.create_node("call_module", target, args, name=target.replace(".", "_"))
            node.meta = _meta(call, spec)
            value = node
    value.meta = dict(call.node.meta)
    if stages[-1][1].out_channels != call.spec.out_channels:
        value.meta = _meta(call, stages[-1][1])
    if call.spec.recurrence is not None and "nn_module_stack" in value.meta:  # by which its file names it
        stack: Any = value.meta["nn_module_stack"]
        *above, (_, (_, kind)) = stack.items()
        value.meta["nn_module_stack"] = dict([*above, (value.target, (value.target, kind))])
    call.node.replace_all_uses_with(value)
    gm.graph.erase_node(call.node)


def _states(node: Node) -> tuple[Argument, ...]:
    """What a recurrent layer is called with besides its input."""
    return (*node.args[1:], *(value for name, value in node.kwargs.items() if name != "input"))


def _meta(call: Call, spec: LayerSpec) -> dict[str, object]:
    keys = ("stack_trace", "nn_module_stack")
    meta = {key: value for key, value in call.node.meta.items() if key in keys}
    recurs = call.spec.recurrence is not None  # and gives several values, none of them of the product's shape
    recorded = (call.source if recurs else call.node).meta.get("tensor_meta")
    if recorded is None:
        return meta
    shape = list(recorded.shape)
    axis = len(shape) - 1 - spec.ndim
    shape[axis:] = [spec.out_channels, *spec.output_size]
    return meta | {"tensor_meta": recorded._replace(shape=torch.Size(shape), stride=())}


def remove_unread(node: Node) -> None:
    """Erase a value that nothing reads any more, and those that were read for it alone."""
    called = node.op in ("call_function", "call_method")
    if called and not node.users and not node.is_impure() and not writes(node):
        inputs = node.all_input_nodes
        node.graph.erase_node(node)
        for each in inputs:
            remove_unread(each)


def remove_unused(gm: GraphModule) -> None:
    """Erase constant nodes without users, and the stored tensors that only they used."""
    erased = set()
    constants = Constants(gm)
    for node in reversed(gm.graph.nodes):
        if node.op == "get_attr" and not node.users:
            erased.add(str(node.target))
            gm.graph.erase_node(node)
        elif node.op in ("call_function", "call_method") and not node.users and node in constants:
            gm.graph.erase_node(node)
    modules = {str(node.target) for node in gm.graph.nodes if node.op == "call_module"}
    kept = {str(node.target) for node in gm.graph.nodes if node.op == "get_attr"}
    for path in erased - kept:
        parts = path.split(".")
        owners = [".".join(parts[:length]) for length in range(1, len(parts))]
        if modules.isdisjoint(owners):
            delattr(gm.get_submodule(owners[-1] if owners else ""), parts[-1])


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if name else prefix
