"""The picture of lanes: rows, chains, joins, and what can be folded away."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxdecomp
from fxdecomp.reporting.topology import Topology, TopologyRow, topology
from tests.nets import HALF, drawn, image, small_resnet


def rows_of(found: Topology) -> dict[str, TopologyRow]:
    return {row.name: row for part in found.parts for row in part.rows}


def test_a_row_is_a_layer_or_a_chain_with_what_follows_it_alone() -> None:
    gm = fxdecomp.trace(small_resnet(), image(1, 3, 16, 16))
    small = fxdecomp.transform(gm, HALF)
    told = fxdecomp.report(small)
    rows = rows_of(topology(small, told.outcomes))
    assert {name for name, row in rows.items() if row.kind == "chain"} == {o.site for o in told.applied}
    chain = rows["layer2.conv1"]
    assert [name for name, _ in chain.stages] == ["pointwise_in", "core", "pointwise_out"]
    assert chain.then == ("ReLU",)
    assert rows["fc"].inputs == ()
    assert rows["stem.0"].then == ("ReLU",)
    joins = {row.inputs for row in rows.values() if len(row.reads) == 2}
    assert joins == {("layer1.conv2", "stem.0"), ("layer2.conv2", "layer2.downsample.0")}


def test_every_line_that_leaves_a_row_arrives_at_a_later_one() -> None:
    gm = fxdecomp.trace(small_resnet(), image(1, 3, 16, 16))
    found = topology(gm, ())
    open_lanes: set[int] = set()
    for row in (row for part in found.parts for row in part.rows):
        assert {*row.reads, *row.passes} == open_lanes
        open_lanes = {*row.passes} | ({row.lane} if row.goes_on else set())
        assert max(open_lanes, default=0) < found.lanes
    assert open_lanes == set()
    assert found.lanes == 2


class Blocks(nn.Module):
    """Three blocks with a shortcut around each, and one around all."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: nn.Conv2d(16, 16, 3, padding=1) for name in "abc"}) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        start = x
        for block in self.blocks:
            y = block["c"](torch.relu(block["b"](torch.relu(block["a"](x)))))
            x = x + y
        return torch.cat([start, x], 1)


def test_rows_of_a_module_are_one_part_and_lines_go_past_it() -> None:
    gm = fxdecomp.trace(drawn(Blocks()), image(1, 16, 6, 6))
    found = topology(gm, ())
    assert [part.name for part in found.parts] == ["", "blocks.0", "blocks.1", "blocks.2", ""]
    first, second, third = found.parts[1:4]
    assert [len(part.rows) for part in found.parts] == [1, 4, 4, 5, 1]
    assert (first.past, first.enters) == ((0,), ())
    assert second.past == (0,)
    assert second.enters == second.leaves
    assert third.leaves
    small = fxdecomp.transform(gm, HALF)
    told = fxdecomp.report(small)
    assert [len(part.outcomes) for part in topology(small, told.outcomes).parts[1:4]] == [3, 3, 3]


def test_a_wide_join_shares_the_last_lane() -> None:
    class Wide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([torch.stack([x * k, x]) for k in range(14)])

    found = topology(fxdecomp.trace(Wide(), torch.randn(2, 4)), ())
    assert found.lanes == 10
