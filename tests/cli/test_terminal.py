"""What a person sees in a terminal: width, colours, silence, errors, help."""

from __future__ import annotations

import io
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from fxdecomp import Policy, report, trace, transform
from fxdecomp.cli import main, terminal
from fxdecomp.cli.tables import (
    benchmark_table,
    coloured_diff,
    inspect_table,
    kernel_table,
    layer_tables,
    left_alone,
)
from fxdecomp.inspecting.layers import inspect_layers
from tests.cli.test_cli import NET, run
from tests.nets import drawn
from tests.reporting.pages import HOSTILE, full_report


def shown(*blocks: object) -> list[str]:
    narrow = Console(width=80, record=True, file=io.StringIO())
    for block in blocks:
        narrow.print(block, markup=False)
    return narrow.export_text().splitlines()


def test_every_table_fits_eighty_columns_and_cuts_no_name_or_reason() -> None:
    told = full_report()
    assert told.benchmark is not None
    assert told.before is not None
    kernels = [kernel_table(name, rows) for name, rows in told.benchmark.kernels.items()]
    lines = shown(
        *layer_tables(told),
        benchmark_table(told.benchmark),
        inspect_table(inspect_layers(told.before)),
        *kernels,
    )
    assert max(map(len, lines)) <= 80
    text = "".join("".join(lines).split())
    assert "…" not in text
    for part in (*(o.method for o in told.applied), "depthwise", "notavailable", "2.00x[2.00,2.00]"):
        assert part in text
    assert HOSTILE[:8] in text


def test_what_multiplies_nothing_is_left_alone_by_its_kind() -> None:
    norms = [nn.LayerNorm(32) for _ in range(5)]
    net = nn.Sequential(*norms, nn.Linear(32, 32), nn.PReLU())
    told = report(transform(trace(net, torch.randn(2, 32)), Policy("svd", 4, exclude=["5"])))
    text = "\n".join(shown(*layer_tables(told)))
    assert "0, ..." in text
    assert "5 LayerNorm" in text
    assert text.count("LayerNorm") == 1
    assert "Linear 32->32" in text
    assert "PReLU" in text


def test_each_layer_has_its_part_and_one_line_and_the_rest_is_summed(monkeypatch, capsys) -> None:
    net = nn.Sequential(
        OrderedDict(tiny=nn.Conv2d(3, 8, 3), norm=nn.BatchNorm2d(8), big=nn.Conv2d(8, 256, 3))
    )
    gm = trace(drawn(net), torch.randn(1, 3, 16, 16))
    rows = {row.site: row for row in inspect_layers(gm, {"big": 0.75})}
    assert sum(row.share for row in rows.values()) == pytest.approx(1)
    assert sum(row.params_share for row in rows.values()) == pytest.approx(1)
    assert rows["big"].worth.startswith("yes -")
    assert rows["tiny"].worth.startswith(("little", "no"))
    assert rows["norm"].worth == rows["norm"].reason
    least = (
        12 * 14 * 8 * 3 * 8 + 12 * 12 * 8 * 3 * 256
    )  # spatial SVD at rank 8, half of the channels at least
    assert rows["big"].saves == pytest.approx((rows["big"].macs - least) / sum(r.macs for r in rows.values()))
    table = shown(inspect_table(list(rows.values())))
    assert [line.split()[0] for line in table] == ["layer", "tiny", "big"]
    assert "75.0%" in table[2]
    assert "1 BatchNorm2d (norm)" in left_alone(list(rows.values()))
    assert run("inspect", NET, "--time", monkeypatch=monkeypatch) == 0
    out = capsys.readouterr().out
    assert "time" in out.splitlines()[0]
    assert "3 layers" in out


def test_a_layer_that_no_method_can_take_says_so_before_and_after() -> None:
    told = full_report()
    assert told.before is not None
    rows = {row.site: row.verdict for row in inspect_layers(told.before)}
    assert rows["depthwise"] == "a depthwise layer has no channels to decompose"


def ansi(environment: dict[str, str]) -> str:
    code = (
        "from fxdecomp.cli.terminal import console; from fxdecomp.cli.tables import coloured_diff;"
        "console.print(coloured_diff('+new\\n-old'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "", "TERM": "xterm", "FORCE_COLOR": "1", "PYTHONPATH": str(Path.cwd())} | environment,
    )
    return done.stdout


def test_colours_come_and_go_with_the_environment() -> None:
    assert "\x1b[32m" in ansi({})
    assert "\x1b" not in ansi({"NO_COLOR": "1"})
    assert str(coloured_diff("+new\n-old\n kept")) == "+new\n-old\n kept\n"


def test_text_between_colons_is_no_emoji(capsys) -> None:
    terminal.print_text("a:x:b")
    terminal.print_blocks("c:x:d")
    terminal.print_error("e:x:f")
    out, error = capsys.readouterr()
    assert (out.split(), error.split()) == (["a:x:b", "c:x:d"], ["e:x:f"])


def test_quiet_prints_nothing_on_standard_error(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(terminal.messages, "_force_terminal", True)
    assert run("inspect", NET, "--quiet", monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().err == ""
    assert run("inspect", NET, monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().err, "the spinner hides the cursor at least"


@pytest.mark.parametrize(
    "command", ["", "inspect", "compress", "bench", "bench-kernels", "diff", "demo", "cache"]
)
def test_each_help_is_one_screen_and_ends_with_an_example(command: str, monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(*command.split(), "--help", monkeypatch=monkeypatch) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) <= (60 if command == "compress" else 40)
    assert max(map(len, lines)) <= 80
    assert "fxdecomp" in " ".join(lines[-2:])
    assert command or {"--debug", "--version"} <= set(" ".join(lines).split())


def test_an_unforeseen_error_is_one_line_unless_the_traceback_is_asked_for(monkeypatch, capsys) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("fxdecomp.cli.loading.load_model", broken)
    assert run("inspect", NET, "--quiet", monkeypatch=monkeypatch) == 1
    assert capsys.readouterr().err.splitlines() == [
        "fxdecomp: KeyError: 'a bug'",
        "This was not foreseen; --debug shows where it happened",
    ]
    for arguments in (["--debug", "inspect", NET], ["inspect", NET, "--debug"]):
        monkeypatch.setattr(sys, "argv", ["fxdecomp", *arguments, "--quiet"])
        with pytest.raises(KeyError):
            main()


def test_an_interruption_is_no_traceback(monkeypatch, capsys) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for name in ("fxdecomp.cli.loading.load_model", "fxdecomp.cli.app.app"):
        with monkeypatch.context() as patched:
            patched.setattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2], interrupted)
            assert run("inspect", NET, monkeypatch=monkeypatch) == 130
        told = "fxdecomp: interrupted; files that were not finished were not written\n"
        assert capsys.readouterr().err == told


def test_the_version_is_told(monkeypatch, capsys) -> None:
    assert run("--version", monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out.startswith("fxdecomp 0.")


def test_the_list_of_commands_cuts_no_summary(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run("--help", monkeypatch=monkeypatch) == 0
    lines = capsys.readouterr().out.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert len(lines) == 7
    assert all(line.endswith(".") and not line.endswith("...") for line in lines)
