"""Two graphs side by side: what stands beside what."""

from __future__ import annotations

import fxdecomp
from fxdecomp.reporting.graph_rows import graph_rows, runs_of
from tests.nets import HALF, image, small_resnet


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
