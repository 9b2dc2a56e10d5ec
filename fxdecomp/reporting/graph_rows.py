"""Two graphs side by side: which node became what, each chain as one row that opens."""

from __future__ import annotations

import difflib
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch.fx import GraphModule, Node

from fxdecomp.outcomes import Applied, Outcome
from fxdecomp.reporting.graph_diff import module_words, target_text
from fxdecomp.sites import survey
from fxdecomp.sites.base import shape_of


@dataclass(frozen=True, slots=True)
class NodeLine:
    """One node for the reader.

    Attributes:
        calls: What it calls, by name.
        words: The layer in words and the shape of the value.
        inputs: The nodes it takes, where they are not just the one before it.
    """

    calls: str
    words: str
    inputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GraphRow:
    """One node before, and what stands in its place.

    Attributes:
        state: `same`, `changed` (a layer and its chain), `removed` or `added`.
        before: The node, None where there was none.
        after: The nodes: one, the stages of a chain, or none.
        site: The layer that was replaced, empty elsewhere.
    """

    state: str
    before: NodeLine | None
    after: tuple[NodeLine, ...]
    site: str = ""


@dataclass(frozen=True, slots=True)
class _Unit:
    """A node, or all the stages of one chain; units with equal keys stand for the same thing."""

    key: str
    lines: tuple[NodeLine, ...]
    site: str = ""


def graph_rows(
    before: GraphModule, after: GraphModule, outcomes: tuple[Outcome, ...]
) -> tuple[GraphRow, ...]:
    """Align two graphs by what their nodes call.

    Args:
        before: The graph before `transform`.
        after: The graph after it.
        outcomes: What became of the layers.
    """
    applied = {o.site: o for o in outcomes if isinstance(o, Applied)}
    left, right = _units_before(before, applied), _units_after(after, applied)
    rows: list[GraphRow] = []
    i, j = 0, 0
    for i_next, j_next in [*_anchors(left, right), (len(left), len(right))]:
        rows += _aligned(left[i:i_next], right[j:j_next])
        rows += map(_pair, left[i_next : i_next + 1], right[j_next : j_next + 1])
        i, j = i_next + 1, j_next + 1
    return tuple(rows)


def _anchors(left: Sequence[_Unit], right: Sequence[_Unit]) -> list[tuple[int, int]]:
    """Pairs of units that stand once on each side, in the longest order that both sides have.

    Layers have names, and so the rest need be aligned between two of them only: the time of an alignment
    grows with the cube of its length where functions of one name repeat. (Patience diff, Bram Cohen.)
    """
    on_left, on_right = (Counter(unit.key for unit in units) for units in (left, right))
    places = {unit.key: j for j, unit in enumerate(right) if on_right[unit.key] == 1}
    pairs = [(i, places[u.key]) for i, u in enumerate(left) if on_left[u.key] == 1 and u.key in places]
    ends: list[int] = []  # the last place on the right of the best order of every length
    chosen: list[int] = []
    before: list[int] = []
    for index, (_, j) in enumerate(pairs):
        length = bisect_left(ends, j)
        ends[length : length + 1] = [j]
        chosen[length : length + 1] = [index]
        before.append(chosen[length - 1] if length else -1)
    order, index = [], chosen[-1] if chosen else -1
    while index >= 0:
        order.append(pairs[index])
        index = before[index]
    return order[::-1]


def _aligned(left: Sequence[_Unit], right: Sequence[_Unit]) -> list[GraphRow]:
    """The rows of two stretches between anchors."""
    matcher = difflib.SequenceMatcher(None, [u.key for u in left], [u.key for u in right], autojunk=False)
    rows: list[GraphRow] = []
    for tag, i, i_end, j, j_end in matcher.get_opcodes():
        if tag == "equal":
            rows += map(_pair, left[i:i_end], right[j:j_end])
            continue
        rows += [GraphRow("removed", unit.lines[0], ()) for unit in left[i:i_end]]
        rows += [GraphRow("added", None, unit.lines, unit.site) for unit in right[j:j_end]]
    return rows


def _pair(left: _Unit, right: _Unit) -> GraphRow:
    return GraphRow("changed" if right.site else "same", left.lines[0], right.lines, right.site)


def _units_before(gm: GraphModule, applied: dict[str, Applied]) -> list[_Unit]:
    replaced = {
        call.node: site.name for site in survey(gm).sites if site.name in applied for call in site.calls
    }
    return [
        _Unit(f"chain {replaced[node]}", (_line(gm, node),), replaced[node])
        if node in replaced
        else _plain(gm, node)
        for node in gm.graph.nodes
    ]


def _units_after(gm: GraphModule, applied: dict[str, Applied]) -> list[_Unit]:
    owners = {stage: (site, stage) for site, o in applied.items() for stage in o.stage_names}
    units: list[_Unit] = []
    for node in gm.graph.nodes:
        site, stage = owners.get(str(node.target), ("", ""))
        if node.op != "call_module" or not site:
            units.append(_plain(gm, node))
        elif stage != applied[site].stage_names[0] and units and units[-1].site == site:
            units[-1] = _Unit(units[-1].key, (*units[-1].lines, _line(gm, node)), site)
        else:
            units.append(_Unit(f"chain {site}", (_line(gm, node),), site))
    return units


def _plain(gm: GraphModule, node: Node) -> _Unit:
    return _Unit(f"{node.op} {node.target}", (_line(gm, node),))


def _line(gm: GraphModule, node: Node) -> NodeLine:
    shape = shape_of(node)
    sizes = "" if shape is None else f"[{'x'.join(map(str, shape))}]"
    words = module_words(gm.get_submodule(str(node.target))) if node.op == "call_module" else ""
    inputs = [each.name for each in node.all_input_nodes]
    calls = node.name if node.op in ("placeholder", "get_attr") else target_text(node)
    return NodeLine(calls, f"{words} {sizes}".strip(), () if inputs == [node.prev.name] else tuple(inputs))


def runs_of(rows: Sequence[GraphRow]) -> list[tuple[str, tuple[GraphRow, ...]]]:
    """The rows in runs of `same` and of `different` ones."""
    runs: list[tuple[str, list[GraphRow]]] = []
    for row in rows:
        kind = "same" if row.state == "same" else "different"
        if not runs or runs[-1][0] != kind:
            runs.append((kind, []))
        runs[-1][1].append(row)
    return [(kind, tuple(members)) for kind, members in runs]
