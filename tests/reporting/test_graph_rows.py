"""Two graphs side by side: what stands beside what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxdecomp
from fxdecomp.reporting import graph_rows as module
from fxdecomp.reporting.graph_rows import graph_rows, runs_of
from tests.nets import HALF, drawn, image, small_resnet


def test_chains_stand_beside_their_layers_and_folded_norms_beside_nothing() -> None:
    gm = fxdecomp.trace(small_resnet(), image(1, 3, 16, 16))
    small = fxdecomp.transform(gm, HALF)
    told = fxdecomp.report(small)
    rows = graph_rows(gm, small, told.outcomes)
    changed = {row.site: row for row in rows if row.state == "changed"}
    assert list(changed) == [outcome.site for outcome in told.applied]
    for outcome in told.applied:
        row = changed[outcome.site]
        assert row.before is not None
        assert row.before.calls == outcome.site
        assert [line.calls for line in row.after] == [f"{outcome.site}.{stage}" for stage in outcome.stages]
    removed = [row.before.calls for row in rows if row.state == "removed" and row.before]
    assert removed == [fold.norm for fold in told.record.folds]
    assert sum(row.before is not None for row in rows) == len(gm.graph.nodes)
    assert sum(len(row.after) for row in rows) == len(small.graph.nodes)


def test_only_inputs_that_are_not_the_node_before_are_told() -> None:
    gm = fxdecomp.trace(small_resnet(), image(1, 3, 16, 16))
    rows = graph_rows(gm, gm, ())
    assert {row.state for row in rows} == {"same"}
    told = {row.before.calls: row.before.inputs for row in rows if row.before}
    assert told["layer1.bn1"] == ()
    assert told["add"] == ("layer1_bn2", "stem_2") or told["add"] == ("layer2_bn2", "layer2_downsample_1")
    assert [kind for kind, _ in runs_of(rows)] == ["same"]


class Deep(nn.Module):
    """Many layers, with BatchNorms that vanish between functions of one name."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)) for _ in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + 0.01 * torch.relu(layer(x))
        return x


def test_a_deep_network_is_aligned_from_layer_to_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    gm = fxdecomp.trace(drawn(Deep(60)).eval(), image(1, 16, 4, 4))
    small = fxdecomp.transform(gm, HALF)
    told, aligned, lengths = fxdecomp.report(small), module._aligned, []

    def noted(left: Sequence[Any], right: Sequence[Any]) -> Any:
        lengths.append(max(len(left), len(right)))
        return aligned(left, right)

    monkeypatch.setattr(module, "_aligned", noted)
    rows = graph_rows(gm, small, told.outcomes)
    assert max(lengths) <= 5  # norm, relu, mul, add, and one end
    assert [row.site for row in rows if row.state == "changed"] == [o.site for o in told.applied]
    removed = [row.before.calls for row in rows if row.state == "removed" and row.before]
    assert removed == [fold.norm for fold in told.record.folds]
    assert not [row for row in rows if row.state == "added"]
    assert sum(row.before is not None for row in rows) == len(gm.graph.nodes)
    assert sum(len(row.after) for row in rows) == len(small.graph.nodes)


def test_layers_in_another_order_are_aligned_in_the_longest_that_both_have() -> None:
    def traced(*names: str) -> torch.fx.GraphModule:
        net = nn.Sequential()
        for name in names:
            net.add_module(name, nn.Linear(4, 4))
        return fxdecomp.trace(net, image(1, 4))

    rows = graph_rows(traced("a", "b", "c", "d", "e"), traced("e", "b", "c", "a", "d"), ())
    assert [r.before.calls for r in rows if r.state == "same" and r.before][1:-1] == ["b", "c", "d"]
    assert [r.before.calls for r in rows if r.state == "removed" and r.before] == ["a", "e"]
    assert [r.after[0].calls for r in rows if r.state == "added"] == ["e", "a"]
