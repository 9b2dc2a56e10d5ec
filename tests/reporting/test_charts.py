"""The charts of the page: points where their numbers are, ticks that are round."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import fxdecomp
from fxdecomp.reporting import Frontier, FrontierPoint
from fxdecomp.reporting.charts import HEIGHT, WIDTH, error_chart, frontier_chart, roofline_chart
from fxdecomp.reporting.error_path import LayerError
from fxdecomp.reporting.evidence import frontier_of
from fxdecomp.searching.trials import SearchResult, Trial
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


def test_the_least_quality_is_a_level_and_points_have_their_names_where_there_is_room() -> None:
    told = full_report()
    assert told.frontier is not None
    near = FrontierPoint("near half", 50.5, 0.979)
    frontier = replace(told.frontier, points=(*told.frontier.points, near), least_quality=0.9)
    chart = frontier_chart(frontier)
    assert chart.limit == chart.marks[3].y
    assert chart.limit_text == "least accepted accuracy: 0.9"
    assert [mark.text for mark in chart.marks] == ["dense", "half", "tenth", "worse and dearer", ""]
    assert [mark.anchor for mark in chart.marks[:2]] == ["end", "start"]
    below = frontier_chart(replace(told.frontier, least_quality=0.1))
    assert below.limit is not None
    assert below.limit > max(mark.y for mark in below.marks)
    assert frontier_chart(replace(told.frontier, least_quality=None)).limit is None


def test_a_search_gives_its_metric_its_least_value_and_what_failed() -> None:
    gm = fxdecomp.trace(nn.Sequential(nn.Linear(4, 4)), torch.randn(1, 4))
    trials = (
        Trial(1.0, 100, 10, 0.9, accepted=True),
        Trial(0.5, 50, 5, 0.8, accepted=False),
        Trial(0.1, 10, 1, float("nan"), accepted=False, problem="cannot be met"),
    )
    found = SearchResult(gm, trials, trials[0], 0.05, metric_name="mynets:accuracy")
    frontier = frontier_of(found)
    assert (frontier.quality_name, frontier.least_quality) == ("accuracy", pytest.approx(0.85))
    assert frontier.failed == (("0.1 of the MACs", "cannot be met"),)
    assert [point.name for point in frontier.points] == ["dense", "0.5 of the MACs"]
    assert frontier_of(replace(found, metric_name="")).quality_name == "agreement with the original"


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


@pytest.mark.parametrize(
    ("count", "texts"), [(1, ["1", "2"]), (3, ["1", "2", "3"]), (9, ["0", "2", "4", "6", "8", "10"])]
)
def test_chains_are_counted_in_whole_numbers(count: int, texts: list[str]) -> None:
    chart = error_chart([LayerError(f"layer{index}", 0.1, 0.2) for index in range(count)])
    assert [tick.text for tick in chart.x_ticks] == texts
