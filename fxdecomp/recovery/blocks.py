"""Blocks: the chains of a compressed graph beside the layers of the original that they stand for.

    original   x -> conv -> batch_norm -> y            target: y
    small      x' -> detach -> a -> b -> c -> y'       trained: a, b, c, so that y' comes near y

BatchNorms are folded in the original by the same pass as in `small`, so that y and y' are the same quantity,
in train-mode graphs or whatever dialect. Each chain takes its input x' from the compressed network and sends
no gradient to the blocks before it: all blocks are trained at once, in one pass over the batch.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

from torch import nn
from torch.fx import GraphModule, Node
from torch.fx.graph import CodeGen

from fxdecomp.errors import RecoveryError
from fxdecomp.graphs.copies import copy_sharing_tensors
from fxdecomp.graphs.records import record_of
from fxdecomp.outcomes import Applied
from fxdecomp.sites import Site, survey
from fxdecomp.sites.opaque import Opaque


@dataclass(frozen=True, slots=True)
class Block:
    """One place where a chain is applied.

    Attributes:
        site: Name of the layer.
        stages: Qualified names of the stages' modules, in order, without those counted to another layer.
        first: Name of the node of the first stage in the compressed graph.
        last: Name of the node of the last stage's output.
        target: Name of that of the layer in the original, with its BatchNorms folded.
        is_alone: Whether each stage is read by the next one only, and not by the chain of another layer.
    """

    site: str
    stages: tuple[str, ...]
    first: str
    last: str
    target: str
    is_alone: bool = True


def blocks_of(small: GraphModule, folded: GraphModule) -> tuple[Block, ...]:
    """Find the chains of `small` and their layers in the original.

    Args:
        small: A transformed graph.
        folded: The original with its BatchNorms folded.

    Raises:
        RecoveryError: The original has no such layer.
    """
    record = record_of(small)
    applied = [] if record is None else [o for o in record.outcomes if isinstance(o, Applied)]
    sites = {site.name: site for site in survey(folded).sites} if applied else {}
    narrower = {row.site for row in record.widths if row.outputs is not None} if record else set()
    blocks = []
    for outcome in applied:
        stages = outcome.stage_names
        first, last = _nodes_of(small, outcome.all_stage_names[0]), _nodes_of(small, stages[-1])
        if not first or len(first) != len(last) or outcome.site in narrower:
            continue  # what it gives is not what the layer gave; it is trained end to end only
        layer = sites.get(outcome.site)
        if layer is None or len(layer.calls) != len(first):
            raise RecoveryError(
                f'small has a chain for "{outcome.site}", the original has no such layer '
                f"(it has {', '.join(list(sites)[:5])}, ...); give the graph that small was made from"
            )
        for a, b, call in zip(first, last, layer.calls, strict=True):
            end, target = _tensor_of(b, layer), _tensor_of(call.node, layer)
            if end is not None and target is not None:
                names = a.name, end.name, target.name
                blocks.append(Block(outcome.site, stages, *names, is_alone=not outcome.shares))
    return tuple(blocks)


def _tensor_of(node: Node, layer: Site) -> Node | None:
    """The node of a layer's output: a recurrent layer's first value, None where nothing takes that."""
    if layer.spec.recurrence is None:
        return node
    found = (user for user in node.users if user.target is operator.getitem and user.args[1] == 0)
    return next(found, None)


def block_student(small: GraphModule, blocks: tuple[Block, ...]) -> GraphModule:
    """A graph that returns the chains' outputs, their inputs detached; it shares the parameters."""
    gm = copy_sharing_tensors(small)
    nodes = {node.name: node for node in gm.graph.nodes}
    for block in blocks:
        node = nodes[block.first]
        source = node.all_input_nodes[0]
        with gm.graph.inserting_before(node):
            detached = gm.graph.call_method("detach", (source,))
        node.replace_input_with(source, detached)
    return _returning(gm, [nodes[block.last] for block in blocks])


def block_teacher(folded: GraphModule, blocks: tuple[Block, ...]) -> GraphModule:
    """A graph that returns the outputs of the original's layers."""
    gm = copy_sharing_tensors(folded)
    nodes = {node.name: node for node in gm.graph.nodes}
    return _returning(gm, [nodes[block.target] for block in blocks])


def stages_of(gm: GraphModule, blocks: tuple[Block, ...]) -> dict[str, tuple[nn.Module, ...]]:
    """The stages' modules of each site."""
    return {block.site: tuple(gm.get_submodule(name) for name in block.stages) for block in blocks}


def obstacle(gm: GraphModule) -> str:
    """The first opaque leaf that stands between trained parameters and an output; empty where none does.

    Args:
        gm: A graph whose parameters say whether they are trained.
    """
    behind: set[Node] = set()
    for node in gm.graph.nodes:
        module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
        trains = module is not None and any(parameter.requires_grad for parameter in module.parameters())
        if not trains and behind.isdisjoint(node.all_input_nodes):
            continue
        if isinstance(module, Opaque):
            return f"{node.target} ({module.contents})"
        behind.add(node)
    return ""


def _nodes_of(gm: GraphModule, target: str) -> list[Node]:
    return [node for node in gm.graph.nodes if node.op == "call_module" and node.target == target]


def _returning(gm: GraphModule, values: list[Node]) -> GraphModule:
    """The graph cut down to what these values need; it takes the placeholders' values one by one."""
    output = next(node for node in gm.graph.nodes if node.op == "output")
    output.args = (tuple(values),)
    gm.graph.set_codegen(CodeGen())
    gm.graph.eliminate_dead_code()
    gm.recompile()
    return gm
