"""The compressed graph as a picture of lanes, as version histories are drawn: a row a layer, a lane a value.

A value keeps its lane from the row that computes it to the last that reads it. A chain is one row, and so is
a layer with what follows it alone (activations, pools); rows of one module can be folded away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from torch.fx import GraphModule, Node

from fxdecomp.outcomes import Applied, Outcome, Skipped
from fxdecomp.reasons import Reason
from fxdecomp.reporting.graph_diff import module_words, target_text
from fxdecomp.sites import survey
from fxdecomp.sites.base import shape_of

_LEAST_ROWS = 3
"""Rows of a module from which on they can be folded away."""

_MOST_LANES = 10
"""Lanes beyond share the last one's place."""


@dataclass(frozen=True, slots=True)
class TopologyRow:
    """One row.

    Attributes:
        name: The layer, or what a node calls.
        words: What it is, and the shape of its value.
        kind: `chain`, `layer` (one with weights that was left alone) or `plain`.
        then: What follows it alone, by name.
        stages: The stages of a chain, each in words.
        inputs: The rows that it reads, where they are not just the one before it.
        outcome: What became of the layer, None where it is none.
        lane: Where its dot stands.
        reads: The lanes that lead to the dot.
        passes: The lanes that go past it.
        goes_on: Whether a later row reads it.
    """

    name: str
    words: str
    kind: str
    then: tuple[str, ...]
    stages: tuple[tuple[str, str], ...]
    inputs: tuple[str, ...]
    outcome: Outcome | None
    lane: int
    reads: tuple[int, ...]
    passes: tuple[int, ...]
    goes_on: bool


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one module.

    Attributes:
        name: The module; empty for rows that are not folded.
        rows: Its rows.
        past: Lanes that go past all of them.
        enters: The other lanes that lead to the first.
        leaves: The other lanes that leave the last.
    """

    name: str
    rows: tuple[TopologyRow, ...]
    past: tuple[int, ...] = ()
    enters: tuple[int, ...] = ()
    leaves: tuple[int, ...] = ()

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """What became of its layers, of those that multiply."""
        return tuple(row.outcome for row in self.rows if row.outcome is not None and row.outcome.macs_before)


@dataclass(frozen=True, slots=True)
class Topology:
    """The whole picture: its parts from the first to the last, and how many lanes it takes."""

    parts: tuple[Part, ...]
    lanes: int

    @property
    def count(self) -> int:
        """Number of rows."""
        return sum(len(part.rows) for part in self.parts)


@dataclass(slots=True, eq=False)
class _Block:
    """The nodes of one row."""

    name: str
    words: str
    module: str
    outcome: Outcome | None
    nodes: list[Node]
    inputs: list[int]
    then: list[str] = field(default_factory=list)
    stages: list[tuple[str, str]] = field(default_factory=list)

    @property
    def kind(self) -> str:
        if isinstance(self.outcome, Applied):
            return "chain"
        return "plain" if self.outcome is None else "layer"


def topology(gm: GraphModule, outcomes: Sequence[Outcome]) -> Topology:
    """Lay a graph out.

    Args:
        gm: The graph, before or after `transform`.
        outcomes: What became of its layers.
    """
    blocks = _blocks(gm, outcomes)
    rows, lanes = _laid_out(blocks)
    places = range(len(rows))
    parts: list[Part] = []
    for module, group in groupby(places, lambda place: blocks[place].module):
        inside = list(group)
        own = tuple(rows[place] for place in inside)
        if not module or len(own) < _LEAST_ROWS or len(own) == len(rows):
            others = parts.pop().rows if parts and not parts[-1].name else ()
            parts.append(Part("", (*others, *own)))
            continue
        before, after = lanes[inside[0]], lanes[inside[-1] + 1]
        past = {lane for lane, value in before.items() if after.get(lane) == value}
        enters, leaves = (tuple(sorted({*each} - past)) for each in (before, after))
        parts.append(Part(module, own, tuple(sorted(past)), enters, leaves))
    return Topology(tuple(parts), 1 + max((lane for each in lanes for lane in each), default=0))


def _blocks(gm: GraphModule, outcomes: Sequence[Outcome]) -> list[_Block]:
    known = {o.site: o for o in outcomes}
    chains = {stage: o for o in outcomes if isinstance(o, Applied) for stage in o.stage_names}
    layers = {call.node: site.name for site in survey(gm).sites for call in site.calls}
    blocks: list[_Block] = []
    place: dict[Node, int] = {}
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            continue
        called = str(node.target) if node.op == "call_module" else ""
        outcome = chains.get(called) or known.get(layers.get(node, called))
        inputs = [each for each in node.all_input_nodes if each in place]
        before = blocks[place[inputs[0]]] if len(inputs) == 1 else None
        if before is not None and before.nodes[-1] is inputs[0]:
            is_next = isinstance(outcome, Applied) and before.outcome is outcome and not before.then
            is_small = node not in layers and _follows(outcome) and node.op != "output"
            if is_next or (is_small and len(inputs[0].users) == 1):
                place[node] = place[inputs[0]]
                before.nodes.append(node)
                if is_next:
                    before.stages.append(_stage(gm, node))
                else:
                    before.then.append(_called(gm, node))
                continue
        place[node] = len(blocks)
        read = list(dict.fromkeys(place[each] for each in inputs))
        blocks.append(_block(gm, node, outcome, read, blocks[-1].module if blocks else ""))
    return blocks


def _follows(outcome: Outcome | None) -> bool:
    """Whether a node is shown behind what it reads: it has no weights, or only scales and shifts."""
    return outcome is None or (isinstance(outcome, Skipped) and outcome.reason is Reason.ELEMENTWISE)


def _block(gm: GraphModule, node: Node, outcome: Outcome | None, read: list[int], around: str) -> _Block:
    if outcome is not None:
        words = outcome.layer
    else:
        shape = shape_of(node)
        words = "" if shape is None else "x".join(map(str, shape))
    name = (
        outcome.site if outcome is not None else str(node.target) if node.op == "call_module" else node.name
    )
    module = "" if node.op in ("placeholder", "output") else around
    if outcome is not None or node.op == "call_module":
        module = _module_of(outcome.site if outcome is not None else str(node.target))
    block = _Block(name, words, module, outcome, [node], read)
    if isinstance(outcome, Applied):
        block.stages.append(_stage(gm, node))
    return block


def _module_of(name: str) -> str:
    """The block that a layer belongs to: its path up to the first number, or else its first part."""
    path = name.split(".")[:-1]
    end = next((index for index, part in enumerate(path) if part.isdigit()), 0)
    return ".".join(path[: end + 1])


def _called(gm: GraphModule, node: Node) -> str:
    if node.op == "call_module":
        return type(gm.get_submodule(str(node.target))).__name__
    return target_text(node)


def _stage(gm: GraphModule, node: Node) -> tuple[str, str]:
    return str(node.target).rpartition(".")[2], module_words(gm.get_submodule(str(node.target)))


def _laid_out(blocks: Sequence[_Block]) -> tuple[list[TopologyRow], list[Mapping[int, int]]]:
    """The rows, and which block's value every lane holds before each of them and after the last."""
    last = {value: place for place, block in enumerate(blocks) for value in block.inputs}
    held: dict[int, int] = {}  # lane -> block
    rows: list[TopologyRow] = []
    states: list[Mapping[int, int]] = [{}]
    for place, block in enumerate(blocks):
        reads = [lane for lane, value in sorted(held.items()) if value in block.inputs]
        ends = [lane for lane in reads if last[held[lane]] == place]
        passes = sorted(held.keys() - ends)
        for lane in ends:
            del held[lane]
        lane = ends[0] if ends else next(_free(held))
        if place in last:
            held[lane] = place
        is_plain = block.inputs in ([], [place - 1])
        rows.append(
            TopologyRow(
                block.name,
                block.words,
                block.kind,
                tuple(block.then),
                tuple(block.stages),
                () if is_plain else tuple(blocks[value].name for value in block.inputs),
                block.outcome,
                _shown(lane),
                tuple(map(_shown, reads)),
                tuple(map(_shown, passes)),
                place in last,
            )
        )
        states.append({_shown(each): value for each, value in held.items()})
    return rows, states


def _free(held: Mapping[int, int]) -> Iterator[int]:
    return (lane for lane in range(len(held) + 1) if lane not in held)


def _shown(lane: int) -> int:
    return min(lane, _MOST_LANES - 1)
