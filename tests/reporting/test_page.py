"""The page as text: what it holds, that it is whole in itself, and that names are only names."""

from __future__ import annotations

import base64
import html
import json
import re
from html.parser import HTMLParser

import pytest

import fxdecomp
from fxdecomp.reporting import Report
from tests.nets import HALF, image, small_vgg
from tests.reporting.pages import HOSTILE, full_report

VOID = {"meta", "link", "br", "wbr", "input", "img", "hr"}


class Balanced(HTMLParser):
    """Notes the tags that are open, and fails where one closes that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "srcset", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def told() -> Report:
    return full_report()


@pytest.fixture(scope="module")
def page(told: Report, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    told.to_html(path, title="A & B")
    return path.read_text(encoding="utf-8")


def test_the_page_is_one_well_formed_file_that_asks_for_no_other(page: str) -> None:
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert {link[:1] if link.startswith("#") else link[:5] for link in parser.links} == {"#", "data:"}
    assert "url(" not in page
    assert "@import" not in page


def test_names_are_escaped(page: str) -> None:
    assert HOSTILE not in page
    assert "<title>A &amp; B</title>" in page
    assert "&lt;script&gt;throw" in page
    assert page.count("<script>") == 1


def test_every_layer_and_every_reason_is_there(told: Report, page: str) -> None:
    table = page[page.index('id="layers"') : page.index('id="errors"')]
    for outcome in told.outcomes:
        assert table.count(f"<small>{outcome.layer.replace('>', '&gt;')}</small>") >= 1
    assert table.count("<tr>") == 2 + len(told.outcomes) + len(told.skipped)
    for skipped in told.skipped:
        assert skipped.sentence in html.unescape(table)


def test_the_summary_has_quality_size_and_every_setting(page: str) -> None:
    table = page[page.index('id="summary"') : page.index('id="frontier"')]
    for text in ("99.0 %", "2.00 MB", "4000.00 ms", "2000.00 ms, 2.00x [2.00, 2.00]", "not available"):
        assert text in table


def test_the_plan_can_be_downloaded(told: Report, page: str) -> None:
    found = re.search(r'download="plan.json" href="data:application/json;base64,([^"]+)"', page)
    assert found
    assert json.loads(base64.b64decode(found[1])) == told.plan.to_dict()


def test_layer_times_come_from_the_kernel_tables(page: str) -> None:
    assert "4.000 → 3.000" in page


def test_the_page_is_a_pure_function_of_the_report(told: Report, page: str, tmp_path) -> None:
    told.to_html(tmp_path / "again.html", title="A & B")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page
    assert {path.name for path in tmp_path.iterdir()} == {"again.html"}


def test_a_report_of_layers_alone_has_no_empty_sections(tmp_path) -> None:
    gm = fxdecomp.trace(small_vgg(), image(1, 3, 16, 16))
    fxdecomp.report(fxdecomp.transform(gm, HALF)).to_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    shown = re.findall(r'<h2 id="(\w+)"', page)
    assert shown == ["summary", "layers", "skipped", "made"]
    assert re.findall(r'<li><a href="#(\w+)"', page) == shown


def test_a_notebook_shows_the_layers(told: Report) -> None:
    html = told._repr_html_()
    assert HOSTILE not in html
    assert html.count("<tr>") == 1 + len(told.outcomes)
