"""The page in a real Chromium: no errors, and everything that a reader can do with it."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.reporting.pages import full_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; apt-get install chromium")


@pytest.fixture(scope="module")
def report_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("browser") / "report.html"
    full_report().to_html(path)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, report_file: Path) -> Iterator[Any]:
    opened = browser.new_page()
    heard: list[str] = []
    opened.on("console", lambda message: heard.append(message.text))
    opened.on("pageerror", lambda error: heard.append(str(error)))
    opened.on("request", lambda request: heard.append(request.url))
    opened.goto(report_file.as_uri())
    yield opened
    assert heard == [report_file.as_uri()], "a message, an error, or a request for another file"
    opened.close()


def column(page: Any, section: str, index: int) -> list[str]:
    cells = page.locator(f"section[aria-labelledby={section}] tbody tr:visible > :nth-child({index})")
    return [text.split("\n")[0].strip() for text in cells.all_inner_texts()]


def test_it_opens_and_a_hostile_name_does_nothing(page: Any) -> None:
    assert page.locator("section[aria-labelledby=layers]").get_by_text("<script>").is_visible()


def test_tables_sort_both_ways_and_say_so(page: Any) -> None:
    head = page.locator("section[aria-labelledby=layers] thead th", has_text="MACs")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    first = column(page, "layers", 1)
    assert first[0] == "depthwise"
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert column(page, "layers", 1)[-1] == "depthwise"
    name = page.locator("section[aria-labelledby=layers] thead th", has_text="layer")
    name.get_by_role("button").click()
    assert head.get_attribute("aria-sort") is None
    assert column(page, "layers", 1) == sorted(first)


def test_tables_filter_by_words_and_tell_how_many_are_left(page: Any) -> None:
    box = page.locator("section[aria-labelledby=layers]").get_by_label("Filter")
    box.fill("block TUCKER2")
    assert column(page, "layers", 1) == [f"block{index}.0" for index in range(8)]
    assert page.locator("section[aria-labelledby=layers] output").inner_text() == "8 of 12 rows"
    box.fill("")
    assert len(column(page, "layers", 1)) == 12


def test_a_chain_opens_and_shows_its_stages(page: Any) -> None:
    chain = page.locator("#graph ~ ol.diff details", has_text="block3").first
    stage = chain.get_by_text("block3.0.core")
    assert not stage.is_visible()
    chain.locator("summary").click()
    assert stage.is_visible()


def test_errors_along_the_network_are_a_picture_and_a_table(page: Any) -> None:
    section = page.locator("section[aria-labelledby=errors]")
    assert section.locator("figure > svg > circle").count() == 24
    section.locator("summary").click()
    assert column(page, "errors", 3) == [f"{2 * index:.2f} %" for index in range(8)]
    assert column(page, "errors", 4) == [f"{0.5 * index:.2f} %" for index in range(8)]


def test_a_slider_tells_what_other_ranks_cost(page: Any) -> None:
    curve = page.locator("details.curve", has_text="block3.0")
    curve.locator("summary").click()
    told = curve.locator("output")
    assert told.inner_text().startswith("rank 16x16: ")
    assert told.inner_text().endswith(", chosen")
    curve.get_by_role("slider").press("Home")
    assert told.inner_text().startswith("rank 2x2: ")
    assert curve.locator("circle.shown title").text_content() == told.inner_text()


def test_candidates_that_were_timed_have_a_curve_of_their_own(page: Any) -> None:
    curve = page.locator("details.curve", has_text="in time")
    assert "tucker2 16x16 2.000 ms" in curve.locator("summary").inner_text()
    curve.locator("summary").click()
    told = curve.locator("output")
    assert told.inner_text() == "tucker2 16x16: 2.000 ms, 10.00% lost, chosen"
    curve.get_by_role("slider").press("Home")
    assert told.inner_text() == "svd 4: 1.000 ms, 30.00% lost"
    spectrum = page.locator("details.curve", has_text="block0.0").first
    assert "measured 4.000 → 3.000 ms" in spectrum.locator("summary").inner_text()


def test_ranges_stand_where_their_numbers_say(page: Any) -> None:
    bars = page.locator("section[aria-labelledby=lowered] td.bar").all()
    places = [(bar.bounding_box(), bar.locator("span").bounding_box()) for bar in bars[:2]]
    (cell, first), (_, second) = places
    whole = second["x"] + second["width"] - first["x"]  # -2 to 5
    assert first["width"] / whole == pytest.approx(4 / 7, abs=0.02)
    assert (second["x"] - first["x"]) / whole == pytest.approx(2 / 7, abs=0.02)
    assert whole <= cell["width"]
    page.get_by_text("What each stage costs where it alone is lowered").click()
    assert "in fp32" in page.locator("section[aria-labelledby=lowered]").inner_text()


def test_memory_is_that_of_both_networks(page: Any) -> None:
    names = column(page, "memory", 1)
    assert names == ["dense", "small"]
    dense, small = (float(text.split()[0]) for text in column(page, "memory", 2))
    assert 0 < small < dense


def test_the_network_is_a_picture_whose_lines_join(page: Any) -> None:
    section = page.locator("section[aria-labelledby=topology]")
    rows = section.locator("ol.lanes > li").all()
    boxes = [row.bounding_box() for row in rows]
    for above, below in itertools.pairwise(boxes):
        assert below["y"] == pytest.approx(above["y"] + above["height"], abs=0.6)
    pictures = [row.locator("svg.lanes").first.bounding_box() for row in rows]
    for row, picture in zip(boxes, pictures, strict=True):
        assert picture["height"] == pytest.approx(row["height"], abs=0.6)
    assert section.locator("circle.chain").count() == 9 + 1  # one in the legend
    chain = section.locator("li > details", has_text="block3").first
    chain.locator("summary").click()
    assert chain.get_by_text("core").is_visible()
    grown = chain.locator("xpath=..")
    assert grown.locator("svg.lanes").bounding_box()["height"] == pytest.approx(
        grown.bounding_box()["height"], abs=0.6
    )


def test_everything_opens_for_print(page: Any) -> None:
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.emulate_media(media="print")
    breaks = "all => [...new Set(all.map(each => getComputedStyle(each).breakAfter))]"
    for what in ("h2", "h2 + p", "summary", "caption"):
        assert page.locator(what).evaluate_all(breaks) == ["avoid"], (
            f"{what} stands alone at the foot of a page"
        )
    assert page.locator("figure").evaluate_all(breaks) == ["auto"], "a page of figures has no place to break"


@pytest.mark.parametrize("width", [360, 400, 1280])
def test_nothing_is_cut_off_at_the_side(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.evaluate("dispatchEvent(new Event('beforeprint'))")  # opens what is folded
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    hidden = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
    assert page.evaluate(hidden) == 0


def test_on_a_narrow_screen_each_number_says_what_it_is(page: Any) -> None:
    page.set_viewport_size({"width": 400, "height": 800})
    cell = page.locator("section[aria-labelledby=summary] tbody td").first
    assert cell.evaluate("e => getComputedStyle(e, '::before').content") == '"accuracy"'
    assert not page.locator("section[aria-labelledby=summary] thead").is_visible()


def test_the_verdict_stands_first_and_the_frontier_has_its_limit(page: Any) -> None:
    verdict = page.get_by_role("region", name="Verdict")
    assert verdict.locator(".ship").inner_text() == "Ship small"
    told = verdict.inner_text()
    for part in ("2.00", "1.00 MB", "was 2.00 MB", "98.0 %", "accuracy, was 99.0 %"):
        assert part in told
    boxes = [place.bounding_box()["y"] for place in (verdict, page.get_by_role("navigation"))]
    assert boxes == sorted(boxes)
    frontier = page.locator("section[aria-labelledby=frontier]")
    assert frontier.get_by_text("least accepted accuracy: 0.97").is_visible()
    assert "failed: no network meets it" in frontier.locator("tbody").inner_text()
    assert frontier.locator("text.beside").all_text_contents() == [
        "dense",
        "half",
        "tenth",
        "worse and dearer",
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(page: Any, scheme: str) -> None:
    """The contrast that WCAG 2.1 AA asks for, 4.5, for the text colours on both grounds."""
    page.emulate_media(color_scheme=scheme)
    names = ("ink", "quiet", "link", "page", "card", "minus", "plus")
    colours = page.evaluate(
        "names => names.map(n => { const e = document.createElement('i'); e.style.color = `var(--${n})`;"
        "document.body.append(e); const c = getComputedStyle(e).color; e.remove();"
        "return c.match(/[0-9]+/g).slice(0, 3).map(Number); })",
        list(names),
    )
    light = {name: _luminance(colour) for name, colour in zip(names, colours, strict=True)}
    pairs = [(text, ground) for text in ("ink", "quiet") for ground in ("page", "card", "minus", "plus")]
    for text, ground in [*pairs, ("link", "page")]:
        high, low = sorted((light[text], light[ground]), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)


def _luminance(colour: list[int]) -> float:
    parts = [c / 255 for c in colour]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_it_is_readable_without_script(browser: Any, report_file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report_file.as_uri())
    assert len(column(page, "layers", 1)) == 12
    assert page.locator("button").count() == 0
    context.close()
