"""Names out of files and models never command a terminal: they are shown escaped, on pages and in errors."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import fxdecomp
from fxdecomp.cli import app
from fxdecomp.cli.terminal import print_error
from fxdecomp.errors import printable
from fxdecomp.export import to_onnx
from fxdecomp.outcomes import Applied

ESCAPE = "\x1b]0;PWNED\x07\x1b[2J"
SHOWN = r"\x1b]0;PWNED\x07\x1b[2J"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with escapes in names of nodes, inputs, versions and operators."""
    path, x = tmp_path_factory.mktemp("files") / "esc.onnx", torch.randn(2, 16)
    gm = fxdecomp.trace(nn.Sequential(nn.Linear(16, 16)), x)
    to_onnx(fxdecomp.transform(gm, fxdecomp.Policy("svd", 4)), x, path)
    model = onnx.load(str(path))
    for node in model.graph.node:
        node.name = ESCAPE + node.name
    for entry in model.metadata_props:
        if entry.key in ("fxdecomp.version", "fxdecomp.torch_version"):
            entry.value = ESCAPE
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("command", [["bench", "--rounds", "2"], ["inspect"], ["inspect", "--json"]])
def test_a_file_does_not_command_the_terminal(command: list[str], hostile: Path) -> None:
    done = CliRunner().invoke(app, [command[0], str(hostile), *command[1:]])
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.output
    assert "\x07" not in done.output
    assert "PWNED" in done.output


def test_an_error_does_not_either(tmp_path: Path) -> None:
    model = onnx.helper.make_model(
        onnx.helper.make_graph([onnx.helper.make_node(f"Nope{ESCAPE}", ["x"], ["y"])], "g", [], [])
    )
    onnx.save(model, str(tmp_path / "bad.onnx"))
    with pytest.raises(fxdecomp.ExportError) as raised:
        fxdecomp.importing.from_onnx(tmp_path / "bad.onnx")
    assert "\x1b" not in str(raised.value)
    assert str(fxdecomp.FxdecompError(ESCAPE)) == SHOWN


def test_error_lines_of_other_packages_neither(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(f"KeyError: {ESCAPE}")
    assert capsys.readouterr().err == f"KeyError: {SHOWN}\n"


def test_a_page_shows_them_escaped() -> None:
    gm = fxdecomp.trace(nn.Sequential(nn.Linear(16, 16)), torch.randn(2, 16))
    told = fxdecomp.report(fxdecomp.transform(gm, fxdecomp.Policy("svd", 4)))
    page = fxdecomp.reporting.page.page_html(told, ESCAPE)
    assert isinstance(told.outcomes[0], Applied)
    assert "\x1b" not in page
    assert SHOWN in page


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 漢 🙂\n\ttab", "plain é 漢 🙂\n\ttab"),
        ("a\x1b[31m", r"a\x1b[31m"),
        ("\x9b2J\x7f\r", r"\x9b2J\x7f\r"),
        ("abc\u202egnp.exe", r"abc\u202egnp.exe"),
        ("bad\udcff", r"bad\udcff"),
    ],
)
def test_only_what_commands_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
