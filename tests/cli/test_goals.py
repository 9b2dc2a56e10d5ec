"""A search on the command line, and what contradicts itself there."""

import json
import sys
from pathlib import Path

import pytest
import torch

from fxdecomp import FxdecompError, Latency, MACs, Params, Policy, report, trace, transform
from fxdecomp.cli.batches import load_calibration
from fxdecomp.cli.goals import load_metric
from fxdecomp.cli.policies import parse_budget, provider_named
from fxdecomp.export import read_metadata, to_onnx
from fxdecomp.recovery.checkpoints import name_of
from tests.cli.test_cli import NET, run
from tests.cli_models import batches, small_net

SEARCH = ("--calibration", "tests.cli_models:batches", "--metric", "tests.cli_models:quality")


def test_a_search_writes_what_it_judged_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", str(tmp_path / "out"), "--quiet")
    arguments = ("compress", NET, *out, *SEARCH, "--max-drop", "0.01", "--method", "tucker2")
    assert run(*arguments, "--evaluations", "1", monkeypatch=monkeypatch) == 0
    assert "accepted, taken" in capsys.readouterr().out
    told = json.loads((tmp_path / "out" / "search.json").read_text())
    assert len(told["trials"]) == 2
    assert told["trials"][told["best"]]["macs"] < told["trials"][0]["macs"]
    assert run(*arguments, "--evaluations", "2", "--json", monkeypatch=monkeypatch) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["search"]["trials"][:2] == told["trials"]
    assert len(result["search"]["trials"]) == 3
    assert result["verdict"]["ship"] == "small"
    record = read_metadata(tmp_path / "out" / "small.onnx").record  # type: ignore[union-attr]
    assert record is not None
    assert record.plan is not None
    best = result["search"]["trials"][result["search"]["best"]]
    assert record.plan.to_dict() == best["plan"]
    policy = Policy.load(tmp_path / "out" / "policy.toml")
    assert policy.budget is None
    net, example = small_net()
    again = transform(trace(net, example), policy, calibration=batches())
    assert report(again).plan.to_dict() == best["plan"]
    summary = (tmp_path / "out" / "report.html").read_text().partition("Cost against quality</h2>")[0]
    assert "metric</th>" in summary
    assert f"{best['metric']:.4f}" in summary


def test_a_search_that_finds_nothing_leaves_a_policy_that_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    search = ("--max-drop", "0", "--metric", "tests.cli_models:size", "--evaluations", "1", "--quiet")
    assert run("compress", NET, "--out", str(out), *search, monkeypatch=monkeypatch) == 0
    gm = trace(*small_net())
    assert not report(transform(gm, Policy.load(out / "policy.toml"))).modified


def test_a_plan_in_a_file_is_read_as_such_by_a_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = transform(trace(*small_net()), Policy("svd", 4))
    to_onnx(small, small_net()[1], tmp_path / "small.onnx")
    (tmp_path / "policy.pt2").write_bytes(b"\xff\xfe\x00PK")
    for name, message in (("small.onnx", "budget that it can replace"), ("policy.pt2", "is no text")):
        given = ("--max-drop", "0.1", "--policy", str(tmp_path / name))
        assert run("compress", NET, "--out", str(tmp_path / "no"), *given, monkeypatch=monkeypatch) == 2
        assert message in capsys.readouterr().err


def test_a_budget_and_calibration_without_a_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("compress", NET, "--out", str(tmp_path / "out"), "--budget", "macs:0.6", *SEARCH[:2])
    assert run(*arguments, "--json", monkeypatch=monkeypatch) == 0
    report = json.loads(capsys.readouterr().out)["report"]
    assert report["macs_after"] <= 0.6 * report["macs_before"]
    assert any(row.get("output_error") is not None for row in report["outcomes"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--max-drop", "0.01", "--budget", "macs:0.5"), "leave --budget away"),
        (("--max-drop", "0.01", "--rank", "8"), "leave --rank away"),
        (("--budget", "macs:0.5", "--policy", "x.toml"), "leave --method and --budget away"),
        (("--budget", "watts:3"), "budget 'watts:3' is none of"),
        (("--budget", "macs:many"), "budget 'macs:many' is none of"),
        (
            ("--budget", "latency:0.5", "--provider", "NoSuchProvider"),
            "there is no provider 'NoSuchProvider'",
        ),
        (("--max-drop", "0.01", "--metric", "tests.cli_models:absent"), "has no 'absent'; it has"),
        (("--budget", "macs:0.5", "--calibration", "tests.cli_models:NET"), "has no 'NET'; it has"),
        (("--budget", "macs:0.5", "--calibration", "tests.cli_models:not_a_module"), "wanted batches"),
    ],
)
def test_contradictions_give_one_clear_line(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("compress", NET, "--out", str(tmp_path), *arguments, monkeypatch=monkeypatch) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_metric_that_raises_is_named_with_its_line_and_known_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_metrics.py").write_text(
        "def broken(net):\n    raise KeyError('labels')\n\nclass Scored:\n    def __call__(self, net):\n"
        "        return 1.0\n\nscored = Scored()\n"
    )
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    metric = ("--metric", f"{tmp_path / 'own_metrics.py'}:broken", "--max-drop", "0.1")
    assert run("compress", NET, "--out", str(tmp_path / "out"), *metric, monkeypatch=monkeypatch) == 2
    assert "own_metrics.py:broken raised KeyError: 'labels' (" in (told := capsys.readouterr().err)
    assert "own_metrics.py, line 2)" in told
    for name, known in (("broken", "own_metrics:broken"), ("scored", "own_metrics:Scored")):
        found = load_metric(f"own_metrics:{name}")
        assert found is not None
        assert name_of(found) == known


def test_budgets_and_providers_in_words() -> None:
    assert parse_budget("macs:0.25") == MACs(0.25)
    assert parse_budget("params:1000") == Params(1000)
    assert parse_budget("latency:0.5", "cuda", 2) == Latency(0.5, "CUDAExecutionProvider", 2)
    assert parse_budget("latency:10ms") == Latency(seconds=0.01)
    assert parse_budget("latency:2s").limit(9.0) == 2.0
    assert provider_named("cpu") == "CPUExecutionProvider"
    assert provider_named("SomeExecutionProvider") == "SomeExecutionProvider"
    assert provider_named(None) is None


def test_a_tensor_becomes_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.cli_models.batches", lambda: torch.zeros(40, 3))
    found = load_calibration("tests.cli_models:batches", torch.zeros(1, 3))
    assert found is not None
    assert [len(batch) for batch in found.batches] == [5] * 8  # type: ignore[arg-type]
    assert load_calibration(None, torch.zeros(1)) is None
    with pytest.raises(FxdecompError, match="absent"):
        load_calibration("tests.cli_models:absent", torch.zeros(1))
