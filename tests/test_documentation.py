"""Every python block of README and docs runs, page by page; command lines that they show can be parsed."""

from __future__ import annotations

import re
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from torch import nn

import fxdecomp
import fxdecomp.calibration
from benchmarks import cli_page
from fxdecomp.cli import app
from tests.nets import drawn, image

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SKIPPED = "<!-- not run: "
"""Stands on the line before a block that cannot run here, with the reason."""

SLOW = {"tutorial.md", "recovery.md", "budgets.md", "README.md", "int8.md", "deployment.md"}


def fences(page: Path) -> list[tuple[str, int, str]]:
    """The fenced blocks of a page: language, the line they begin on, and the text."""
    found: list[tuple[str, int, list[str]]] = []
    inside, before = False, ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("```"):
            inside = not inside
            if inside:
                found.append(("skipped" if SKIPPED in before else line[3:].strip(), number, []))
        elif inside:
            found[-1][2].append(line)
        before = line
    return [(language, number, "\n".join(lines) + "\n") for language, number, lines in found]


def blocks(page: Path) -> list[tuple[int, str]]:
    """The code of a page, with the line before each block."""
    return [(number, code) for language, number, code in fences(page) if language == "python"]


def given(folder: Path) -> dict[str, Any]:
    """What pages take for granted: a network with the usual names, inputs for it, and its file."""
    net = nn.Sequential()
    net.add_module("stem", nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()))
    layers = (nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())
    net.add_module("features", nn.Sequential(*layers))
    net.add_module("classifier", nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10)))
    example = image(1, 3, 16, 16)
    gm = fxdecomp.trace(drawn(net), example)
    fxdecomp.export.to_onnx(gm, example, folder / "dense.onnx")
    batches = [image(8, 3, 16, 16, seed=seed) for seed in range(5)]
    labels = [net(batch).argmax(1) for batch in batches]
    return {
        "__name__": "__main__",  # dataclasses look their module up
        "fxdecomp": fxdecomp,
        "torch": torch,
        "model": net,
        "gm": gm,
        "small": fxdecomp.transform(gm, fxdecomp.Policy(method="tucker2", rank=0.5)),
        "example": example,
        "example_inputs": example,
        "batches": batches,
        "labels": labels,
        "loader": list(zip(batches, labels, strict=True)),
        "policy": fxdecomp.Policy(method="tucker2", rank=0.5),
        "cross_entropy": nn.functional.cross_entropy,
        "Calibration": fxdecomp.calibration.Calibration,
    }


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=[pytest.mark.slow] if page.name in SLOW else [])
        for page in PAGES
        if blocks(page)
    ],
)
def test_the_code_of_a_page_runs_from_top_to_bottom(page: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FXDECOMP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("MPLBACKEND", "agg")
    short = partial(
        fxdecomp.recover, steps=8, block_steps=8
    )  # that the code runs is shown, not what it gains
    monkeypatch.setattr(fxdecomp, "recover", short)
    names = given(tmp_path)
    for line, code in blocks(page):
        exec(compile("\n" * line + code, str(page), "exec"), names)


def test_pages_have_code_and_a_broken_block_is_noticed(tmp_path) -> None:
    assert sum(len(blocks(page)) for page in PAGES) >= 20
    page = tmp_path / "page.md"
    page.write_text(f"text\n```python\nraise ValueError\n```\n{SKIPPED}why -->\n```python\n1 / 0\n```\n")
    assert blocks(page) == [(2, "raise ValueError\n")]


def commands(page: Path) -> list[list[str]]:
    """The command lines of `fxdecomp` in a page's code, comments and results cut off."""
    text = page.read_text(encoding="utf-8")
    shell = "\n".join(code for language, _, code in fences(page) if language in ("", "console", "sh"))
    lines = re.findall(r"^(?:\$ )?fxdecomp .*$", shell, re.MULTILINE)
    lines += re.findall(r"`(fxdecomp [a-z]+ [^`]*)`", text)
    return [shlex.split(line.removeprefix("$ "), comments=True)[1:] for line in lines]


def test_the_command_lines_that_pages_show_are_those_of_the_program() -> None:
    group = typer.main.get_command(app)
    found = [(page.name, words) for page in PAGES for words in commands(page)]
    assert len(found) >= 6
    for page, (name, *words) in found:
        command = group.commands.get(name)  # type: ignore[attr-defined]
        assert command is not None, f"{page}: fxdecomp {name}"
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        given_options = {word.split("=")[0] for word in words if word.startswith("-")}
        assert given_options <= known, f"{page}: fxdecomp {name} {words}"


def test_the_page_of_the_command_line_is_that_of_the_program() -> None:
    again = "run python -m benchmarks.cli_page docs/cli.md"
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == cli_page.page(), again


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert str(page.relative_to(ROOT / "docs")) in navigation, f"add {page.name} to nav in mkdocs.yml"


def test_every_reason_is_explained() -> None:
    questions = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
    told = {fxdecomp.Reason.NOT_TRANSFORMED, fxdecomp.Reason.ZERO_WEIGHT, fxdecomp.Reason.NOT_FINITE}
    for reason in set(fxdecomp.Reason) - told:
        assert reason.value in questions


def test_the_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(links) >= 8
    for link in links:
        assert (ROOT / link).exists(), link


MEASURED = re.compile(r"\d ?(?:%|x \[|x\b| ms\b| s\b| dB\b| MB\b)")
COMMAND = re.compile(r"python -m benchmarks\.|make demo")


def test_a_page_with_measured_numbers_names_commands_and_the_version() -> None:
    measured = [page for page in PAGES if len(MEASURED.findall(page.read_text(encoding="utf-8"))) > 2]
    assert len(measured) >= 10
    for page in measured:
        text = page.read_text(encoding="utf-8")
        assert COMMAND.search(text), f"{page.name}: which command makes its numbers?"
        assert re.search(r"[Vv]ersion \d+\.\d+\.\d+", text), f"{page.name}: of which version are its numbers?"
