"""Options from files and presets, and back into a file."""

import json
import tomllib
from pathlib import Path

import pytest

from fxdecomp.cli.app import _with_steps
from tests.cli.test_cli import NET, run

BATCHES = "tests.cli_models:batches"


@pytest.fixture
def fxd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def call(*arguments: object, code: int = 0) -> tuple[str, str]:
        assert run(*map(str, arguments), monkeypatch=monkeypatch) == code
        return capsys.readouterr()

    return call


def test_a_run_writes_its_options_and_the_file_makes_the_same_run(tmp_path: Path, fxd) -> None:
    policy = tmp_path / "own.toml"
    policy.write_text(
        'method = "tucker2"\nrank = 0.5\n\n[[rules]]\npattern = "4"\nmethod = "svd"\nrank = 4\n'
    )
    first = (
        "compress",
        NET,
        "--policy",
        policy,
        "--calibration",
        BATCHES,
        "--recover",
        20,
        "-o",
        tmp_path / "a",
    )
    out, _ = fxd(*first, "--opset", 20, "--output-names", "scores", "--exclude", "2", "--json")
    kept = tomllib.loads((tmp_path / "a" / "run.toml").read_text())
    assert kept["policy"]["rules"][0]["pattern"] == "4"
    assert {key: kept[key] for key in ("model", "recover", "opset", "output-names", "exclude")} == {
        "model": NET,
        "recover": 20,
        "opset": 20,
        "output-names": "scores",
        "exclude": ["2"],
    }
    assert "threads" not in kept
    policy.unlink()
    again, _ = fxd("compress", "--config", tmp_path / "a" / "run.toml", "-o", tmp_path / "b", "--json")
    one, two = json.loads(out), json.loads(again)
    assert one["report"] == two["report"]
    assert one["export"]["outputs"] == ["scores"]
    assert one["export"]["opset"] == 20
    assert any("recovery" in note for note in one["report"]["notes"])
    skipped = {row["site"] for row in one["report"]["outcomes"] if row["outcome"] == "skipped"}
    assert "2" in skipped
    assert tomllib.loads((tmp_path / "b" / "run.toml").read_text()) == kept | {"out": str(tmp_path / "b")}


def test_the_command_line_wins_over_the_file_and_the_file_over_the_preset(tmp_path: Path, fxd) -> None:
    config = tmp_path / "run.toml"
    lines = [f'model = "{NET}"', 'preset = "balanced"', "time = false", "evaluations = 3", "threads = 3"]
    config.write_text("\n".join([*lines, f'out = "{tmp_path / "out"}"']))
    told = json.loads(fxd("compress", "--config", config, "--threads", 2, "--json")[0])
    assert told["timings"] is None, "the file's word on time, not the preset's"
    kept = tomllib.loads((tmp_path / "out" / "run.toml").read_text())
    assert kept["budget"] == "macs:0.5", "the preset's"
    assert (kept["evaluations"], kept["threads"]) == (3, 2)
    assert not {"preset", "time"} & set(kept)


def test_recover_has_its_steps_where_none_are_said() -> None:
    assert _with_steps(["compress", "--recover", "-o", "out"]) == [
        "compress",
        "--recover",
        "400",
        "-o",
        "out",
    ]
    assert _with_steps(["x", "--recover", "30"]) == ["x", "--recover", "30"]
    assert _with_steps(["x", "--recover"]) == ["x", "--recover", "400"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("calibraton = 'x:y'", "there is no option 'calibraton'; use calibration"),
        ("threads = 'two'", "Invalid value for '--threads'"),
        ("threads = -1", "greater than or equal to 0"),
        ("quiet = true", "there is no option 'quiet'"),
        ("rank = {a = 1}", "rank is no table"),
        ("nonsense", "cannot be read"),
        ("[policy]\nmethod = 'tuker2'", "there is no method 'tuker2'"),
    ],
)
def test_a_file_of_options_that_cannot_be_meant_is_refused(
    text: str, message: str, tmp_path: Path, fxd
) -> None:
    config = tmp_path / "run.toml"
    config.write_text(text)
    _, error = fxd("compress", NET, "-o", tmp_path / "out", "--config", config, code=2)
    assert message in error
    _, error = fxd("compress", NET, "-o", tmp_path / "out", "--config", tmp_path / "absent.toml", code=2)
    assert "absent.toml: cannot be read" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "tiny"), "there is no preset 'tiny'; there are safe, balanced, small"),
        (("--provider", "banana"), "there is no provider 'banana'; write cpu, cuda"),
        (("--threads", "-1"), "greater than or equal to 0"),
        (("--recover",), "--recover needs inputs: add --calibration or --images"),
        (("--calibration", BATCHES, "--images", "."), "not both"),
        (("--images", "absent"), "there is no folder absent"),
        (("--calibration", "absent.npz"), "there is no file absent.npz"),
        (("--calibration", "nonsense"), "neither an .npz file nor of the form"),
        (("--dynamic-axes", "two"), "'two' are no axes; write them as 2,3"),
        (("--mean", "grey"), "--mean 'grey' is no list of numbers"),
        (("--image-size", "0x3"), "'0x3' is no size of pictures"),
        (("--rule", "svd"), "'svd' is no rule"),
        (("--rule", "4=tuker2"), "there is no method 'tuker2'; use tucker2; there are svd"),
        (("--exclude", "head.*"), "pattern 'head.*' matches no layer"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(
    arguments: tuple[str, ...], message: str, tmp_path: Path, fxd
) -> None:
    given = ("compress", NET, "--method", "svd", "-o", tmp_path / "out", *arguments)
    _, error = fxd(*given, code=2)
    assert message in " ".join(error.split())
    assert not (tmp_path / "out").exists()


def test_a_second_run_replaces_the_first_and_a_failed_one_nothing(tmp_path: Path, fxd, monkeypatch) -> None:
    out = tmp_path / "out"
    fxd("compress", NET, "--method", "svd", "--rank", "4", "--time", "-o", out, "-q")
    (out / "mine.txt").write_text("stays")
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert "dense.onnx" in first

    def failing(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("fxdecomp.compressing.running.program_of", failing)
        fxd("compress", NET, "--method", "svd", "--rank", "2", "-o", out, "-q", code=130)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    told, _ = fxd("compress", NET, "--method", "svd", "--rank", "2", "-o", out, "-q")
    left = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(left) == set(first) - {"dense.onnx"}
    assert left["small.onnx"] != first["small.onnx"]
    assert json.loads(left["report.json"])["export"]["path"] == str(out / "small.onnx")
    assert "Verdict: ship " in told
    assert "--time tells whether it is faster" in " ".join(told.split())
