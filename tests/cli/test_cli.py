from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fxdecomp.cli import main
from fxdecomp.cli.policies import parse_rank
from fxdecomp.export import read_metadata
from fxdecomp.ranks import VBMF, Energy, Fixed, Ratio

NET = "tests.cli_models:small_net"


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["fxdecomp", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_inspect_lists_every_layer_with_methods_or_reason(monkeypatch, capsys):
    assert run("inspect", NET, "--json", monkeypatch=monkeypatch) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["site"] for row in rows] == ["0", "2", "4"]
    assert rows[0]["macs"] == 3 * 16 * 9 * 64
    assert "tucker2" in rows[0]["methods"]
    assert rows[2]["methods"] == ["svd"]


def test_compress_writes_everything_and_the_file_knows_its_history(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "out"
    code = run(
        "compress",
        NET,
        "--method",
        "tucker2",
        "--rank",
        "4,2,1",
        "-o",
        str(folder),
        "--json",
        monkeypatch=monkeypatch,
    )
    assert code == 2  # a convolution takes two ranks: the message says so, and nothing is written
    assert "has 3 entries, tucker2 takes 2" in capsys.readouterr().err
    assert not folder.exists()
    assert (
        run(
            "compress",
            NET,
            "--method",
            "tucker2",
            "--rank",
            "0.5",
            "-o",
            str(folder),
            "--json",
            monkeypatch=monkeypatch,
        )
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "small.onnx",
        "small.pt2",
        "report.html",
        "report.json",
        "policy.toml",
        "graph.diff",
        "run.toml",
    }
    assert json.loads((folder / "report.json").read_text()) == result
    applied = [row["site"] for row in result["report"]["outcomes"] if row["outcome"] == "applied"]
    assert "0" in applied
    assert (
        "+_0_core" in (folder / "graph.diff").read_text() or "0_core" in (folder / "graph.diff").read_text()
    )
    assert [o.site for o in read_metadata(folder / "small.onnx").record.outcomes] == [
        row["site"] for row in result["report"]["outcomes"]
    ]
    assert run("inspect", str(folder / "small.pt2"), "--json", monkeypatch=monkeypatch) == 0
    assert "0.core" in [row["site"] for row in json.loads(capsys.readouterr().out)]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["inspect", "nonsense"], 2, "neither a .pt2 or .onnx file nor of the form package.module:callable"),
        (["inspect", "no.such.module:net"], 2, "No module named 'no'"),
        (["inspect", "cli_models.py:net"], 2, "there is no file cli_models.py"),
        (["inspect", "tests.cli_models:absent"], 2, "has no 'absent'; it has "),
        (["inspect", "tests.cli_models:without_inputs"], 2, "add --input 1x3x224x224"),
        (["inspect", "tests.cli_models:failing"], 2, "raised RuntimeError: weights are missing"),
        (["inspect", "tests.cli_models:not_a_module"], 2, "returns a int, not a torch.nn.Module"),
        (["inspect", "missing.pt2"], 2, "there is no file missing.pt2"),
        (["inspect", NET, "--input", "1x3xa"], 2, "'1x3xa' is no shape"),
        (["inspect", NET, "--input", "1x4x8x8"], 1, "does not run on the example inputs"),
        (["diff", NET], 2, "say what to do"),
        (["diff", NET, "--method", "tuker2"], 2, "there is no method 'tuker2'; use tucker2"),
        (["diff", NET, "--method", "svd", "--rank", "many"], 2, "rank 'many' is none of"),
        (["diff", NET, "--policy", "missing.toml"], 2, "missing.toml: cannot be read"),
        (["bench", "a.onnx", "--axis", "width"], 2, "'width' is no axis"),
        (["compress", NET], 2, "Missing option '--out'"),
    ],
)
def test_bad_arguments_give_one_clear_line(arguments, code, message, monkeypatch, capsys):
    assert run(*arguments, monkeypatch=monkeypatch) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_diff_shows_the_chain(monkeypatch, capsys):
    assert run("diff", NET, "--method", "cp", "--rank", "2", monkeypatch=monkeypatch) == 0
    assert "0.depthwise_vertical" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("vbmf", VBMF()),
        ("energy:0.9", Energy(0.9)),
        ("ratio:0.25", Ratio(0.25)),
        ("0.5", Ratio(0.5)),
        ("32", Fixed((32,))),
        ("64,32", Fixed((64, 32))),
    ],
)
def test_ranks_in_words(text, rule):
    assert parse_rank(text) == rule


def test_a_module_runs_the_command_line():
    shown = subprocess.run(
        [sys.executable, "-m", "fxdecomp", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path.cwd(),
    )
    for command in ("inspect", "compress", "bench", "diff", "demo"):
        assert command in shown.stdout


def test_both_networks_are_timed_and_the_page_of_the_files_tells_of_the_layers(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    options = ["--method", "tucker2", "--rank", "0.5", "-o", str(out), "--time"]
    assert run("compress", NET, *options, monkeypatch=monkeypatch) == 0
    shown = capsys.readouterr()
    assert "faster than first" in shown.out
    assert shown.err == "", "no progress where nobody watches"
    assert (out / "dense.onnx").exists()
    page = (out / "report.html").read_text()
    assert f"fxdecomp compress {NET} --method tucker2" in page
    assert '<th scope="col" class="num">ms</th>' in page
    files = [str(out / "dense.onnx"), str(out / "small.onnx")]
    target = tmp_path / "bench.html"
    assert run("bench", *files, "--rounds", "2", "--html", str(target), monkeypatch=monkeypatch) == 0
    page = target.read_text()
    assert '<h2 id="layers">' in page
    assert "Where the time of small goes" in page


def test_a_diff_without_difference_says_so(monkeypatch, capsys):
    assert run("diff", NET, NET, monkeypatch=monkeypatch) == 0
    shown = capsys.readouterr()
    assert (shown.out, "no difference" in shown.err) == ("", True)
