"""The charts of the page: points where their numbers are, ticks that are round."""

from __future__ import annotations

import pytest

from fxdecomp.reporting import Frontier, FrontierPoint
from fxdecomp.reporting.charts import HEIGHT, WIDTH, frontier_chart, roofline_chart
from tests.reporting.pages import full_report


def test_the_frontier_joins_what_nothing_beats() -> None:
    told = full_report()
    assert told.frontier is not None
    assert [point.name for point in told.frontier.best] == ["tenth", "half", "dense"]
    chart = frontier_chart(told.frontier)
    assert [mark.kind for mark in chart.marks] == ["accepted", "chosen", "rejected", "rejected"]
    assert chart.marks[1].label == "half: 50 ms, accuracy 0.98, chosen"
    dense, half, tenth, _ = chart.marks
    assert tenth.x < half.x < dense.x
    assert tenth.y > half.y > dense.y
    assert chart.line == (
        (tenth.x, tenth.y),
        (half.x, tenth.y),
        (half.x, half.y),
        (dense.x, half.y),
        (dense.x, dense.y),
    )
    assert [tick.text for tick in chart.x_ticks] == ["0", "50", "100"]


@pytest.mark.parametrize("quality", [0.0, 1.0, -3.0])
def test_points_that_agree_in_everything_still_have_a_place(quality: float) -> None:
    chart = frontier_chart(
        Frontier((FrontierPoint("a", 5.0, quality), FrontierPoint("b", 5.0, quality)), "ms")
    )
    for mark in chart.marks:
        assert 0 < mark.x < WIDTH
        assert 0 < mark.y < HEIGHT


def test_the_roofline_bends_where_memory_and_arithmetic_meet() -> None:
    told = full_report()
    assert told.roofline is not None
    chart = roofline_chart(told.roofline)
    start, ridge, end = chart.line
    assert start[1] > ridge[1] == end[1]
    assert chart.kinds == ("pointwise", "core 3x3")
    assert chart.marks[0].x == chart.marks[1].x
    assert all(0 < mark.y < HEIGHT for mark in chart.marks)
