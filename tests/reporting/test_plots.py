"""The pictures: what is drawn on the Axes that come back."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl
import pytest
import torch
from torch import nn

import fxdecomp
from fxdecomp.errors import FxdecompError
from fxdecomp.reporting import Report
from tests.nets import HALF, image, small_vgg
from tests.reporting.pages import full_report


@pytest.fixture(autouse=True)
def _without_screen() -> Iterator[None]:
    from matplotlib import pyplot

    with mpl.rc_context({"backend": "agg"}):
        yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def told() -> Report:
    return full_report()


def test_layers_are_bars_of_time_where_times_are_known(told: Report) -> None:
    axes = told.plot_layers()
    before, after = axes.containers
    assert [label.get_text() for label in axes.get_yticklabels()] == [o.site for o in told.outcomes]
    assert {bar.get_width() for bar in before} == {4.0}
    assert after[1].get_width() == pytest.approx(3.0)
    assert axes.get_xlabel() == "milliseconds"


def test_layers_are_bars_of_macs_where_they_are_not() -> None:
    gm = fxdecomp.trace(small_vgg(), image(1, 3, 16, 16))
    plain = fxdecomp.report(fxdecomp.transform(gm, HALF))
    before, _ = plain.plot_layers().containers
    assert sum(bar.get_width() for bar in before) * 1e6 == pytest.approx(plain.macs_before)


def test_what_multiplies_nothing_has_no_bar() -> None:
    gm = fxdecomp.trace(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8)), torch.randn(2, 8))
    axes = fxdecomp.report(fxdecomp.transform(gm, fxdecomp.Policy(method="svd", rank=2))).plot_layers()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "2"]


def test_the_frontier_marks_what_was_chosen(told: Report) -> None:
    axes = told.plot_frontier()
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {
        "rejected",
        "accepted",
        "chosen",
        "least accepted",
    }
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("ms", "accuracy")


def test_kernels_are_drawn_under_the_roofline_or_as_bars(told: Report) -> None:
    from matplotlib import pyplot

    given = pyplot.figure().subplots()
    assert told.plot_kernels(given) is given
    assert given.get_xscale() == "log"
    bars = Report(told.record, benchmark=told.benchmark).plot_kernels()
    assert [label.get_text() for label in bars.get_yticklabels()] == ["dense", "small"]


@pytest.mark.parametrize("picture", ["plot_frontier", "plot_kernels"])
def test_a_report_without_the_data_says_how_to_get_them(told: Report, picture: str) -> None:
    with pytest.raises(FxdecompError, match=r"make it with fxdecomp.report"):
        getattr(Report(told.record), picture)()


def test_spectra_have_a_curve_a_mode_and_a_mark_a_rule() -> None:
    gm = fxdecomp.trace(small_vgg(), image(1, 3, 16, 16))
    rules = (fxdecomp.Ratio(0.5), fxdecomp.Fixed((3, 2)))
    panels = fxdecomp.plot_spectra(gm, "4", rules=rules)
    assert [panel.get_title() for panel in panels] == ["4: Conv2d 16->32, 3x3"]
    curves, marks = panels[0].lines, panels[0].collections
    assert [len(line.get_xdata()) for line in curves] == [32, 16]
    assert [offset[0] for offset in marks[0].get_offsets()] == [16, 8]
    assert [offset[0] for offset in marks[1].get_offsets()] == [3, 2]
    values = curves[0].get_ydata()
    assert marks[0].get_offsets()[0][1] == pytest.approx(values[15])
    assert len(fxdecomp.plot_spectra(gm, method="cp", rules=rules[:1])) == 5


def test_spectra_that_cannot_be_drawn_say_why() -> None:
    gm = fxdecomp.trace(small_vgg(), image(1, 3, 16, 16))
    with pytest.raises(fxdecomp.PolicyError, match="suits no layer that 'head"):
        fxdecomp.plot_spectra(gm, "head.*")
    axes = fxdecomp.plot_spectra(gm, "0")[0]
    with pytest.raises(FxdecompError, match="do not fit on one axes"):
        fxdecomp.plot_spectra(gm, axes=axes)
