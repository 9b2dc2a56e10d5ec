"""`bench --compare`, `bench-kernels`, `inspect` of files, `compress --quantize`, and ONNX files as models."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

import fxdecomp
from fxdecomp import FxdecompError, Policy
from fxdecomp.cli import main
from fxdecomp.cli.references import ModelReferenceError
from fxdecomp.cli.words import parse_provider_options
from fxdecomp.export import BenchmarkReport, int8, kernel_bench, read_metadata, to_onnx
from fxdecomp.export.file_network import FileNetwork
from fxdecomp.export.sessions import available_providers
from tests.cli_models import batches, mean_output, small_net

NET, BATCHES = "tests.cli_models:small_net", "tests.cli_models:batches"


class Shell:
    """Runs the command line in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: object, code: int = 0) -> tuple[str, str]:
        """Standard output and standard error."""
        self._monkeypatch.setattr(sys, "argv", ["fxdecomp", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, error = self._capsys.readouterr()
        assert int(stopped.value.code or 0) == code, error
        return out, error


@pytest.fixture
def fxd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, capsys)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "dense.onnx"
    to_onnx(torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 16, 3))), torch.randn(1, 3, 8, 8), path)
    return path


def test_two_saved_benchmarks_are_compared(dense: Path, tmp_path: Path, fxd: Shell) -> None:
    for name in ("old", "new"):
        out, _ = fxd("bench", dense, "--rounds", 2, "--memory", "--batch", 1, "--batch", 2, "--json")
        (tmp_path / f"{name}.json").write_text(out)
    assert [row["batch"] for row in json.loads(out)["timings"]] == [1, 2]
    assert json.loads(out)["timings"][0]["peak_bytes"] > 0
    shown, _ = fxd("bench", "--compare", tmp_path / "old.json", tmp_path / "new.json")
    assert "before ms  after ms  speed-up" in shown
    rows = json.loads(fxd("bench", "--compare", tmp_path / "old.json", tmp_path / "new.json", "--json")[0])[
        "rows"
    ]
    assert [(row["model"], row["batch"]) for row in rows] == [("dense", 1), ("dense", 2)]
    _, error = fxd("bench", "--compare", tmp_path / "old.json", code=2)
    assert "--compare takes two saved benchmarks, the old and the new; got 1" in error
    _, error = fxd("bench", "--compare", dense, dense, code=1)
    assert "holds no saved benchmark, as `bench --json`" in error


def test_a_benchmark_is_a_gate(dense: Path, tmp_path: Path, fxd: Shell) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    out, error = fxd("bench", dense, tmp_path / "broken.onnx", "--rounds", 2, code=1)
    assert "fxdecomp: broken on CPUExecutionProvider was not timed: cannot load: " in error
    assert "Traceback" not in error
    assert [line.split()[-2:] for line in out.splitlines() if "broken" in line] == [["cannot", "load"]]
    assert "ONNXRuntimeError" not in out
    _, error = fxd("bench", dense, "--fail-under", 1, code=2)
    assert "name another behind it" in error
    _, error = fxd("bench", dense, tmp_path / "absent.onnx", code=2)
    assert "there is no file" in error
    out, _ = fxd("bench", dense, dense, "--rounds", 2, "--fail-under", "0.001", "--json")
    (tmp_path / "new.json").write_text(out)
    _, error = fxd("bench", dense, dense, "--rounds", 2, "--fail-under", 1000, code=1)
    assert "dense (2) is " in error
    assert "wanted 1000x at least" in error
    saved = ("bench", "--compare", tmp_path / "new.json", tmp_path / "new.json", "--fail-under")
    fxd(*saved, 1)
    _, error = fxd(*saved, 1.5, code=1)
    assert "dense (CPUExecutionProvider, 1 thread(s), batch 1) is 1.00x" in error


def test_a_provider_that_is_absent_is_told_with_what_there_is(dense: Path, fxd: Shell) -> None:
    arguments = ("--provider", "cuda", "--provider-option", "cuda:cudnn_conv_algo_search=HEURISTIC")
    out, error = fxd("bench", dense, *arguments, "--rounds", 2, "--json", code=1)
    assert "dense on CUDAExecutionProvider was not timed: not available" in error
    assert "NaN" not in out
    (row,) = json.loads(out)["timings"]
    assert row["median_s"] is None
    read = BenchmarkReport.from_dict(json.loads(out))
    assert math.isnan(read.timings[0].median_s)
    assert json.loads(json.dumps(read.to_dict())) == json.loads(out)
    assert row["provider"] == "CUDAExecutionProvider"
    assert row["problem"].startswith("not available in this onnxruntime, which has ")


@pytest.mark.parametrize(
    ("provider", "text", "said"),
    [
        ("cuda", "device_id", "'device_id' is no option; write it as device_id=1, or cuda:device_id=1"),
        ("cuda", "dml:device_id=1", "add --provider dml"),
        ("cpu", "device_id=1", "CPUExecutionProvider has no options"),
    ],
)
@pytest.mark.parametrize("command", ["bench", "compress"])
def test_options_of_a_provider_are_refused_before_the_work(
    command: str, provider: str, text: str, said: str, dense: Path, fxd: Shell, tmp_path: Path
) -> None:
    given = ("--provider", provider, "--provider-option", text)
    more = () if command == "bench" else ("--method", "svd", "--rank", 0.5, "-o", tmp_path / "out")
    _, error = fxd(command, dense, *given, *more, code=2)
    assert said in " ".join(error.split())
    assert not (tmp_path / "out").exists()


def test_options_go_to_the_provider_that_they_name_or_to_the_only_one() -> None:
    wanted = {"DmlExecutionProvider": {"device_id": "1", "a": "b=c", "load": '{"x": 1}'}}
    assert parse_provider_options(["device_id=1", "dml:a=b=c", 'load={"x": 1}'], ["dml"]) == wanted
    with pytest.raises(ModelReferenceError, match="say of which provider, such as dml:a=1"):
        parse_provider_options(["a=1"], ["dml", "cuda"])


def test_options_reach_the_times_of_a_run_and_those_of_its_budget_and_search(
    fxd: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def watched(*arguments: Any, **named: Any) -> None:
        seen.update(named, policy=arguments[1])
        raise FxdecompError("seen")

    monkeypatch.setattr("fxdecomp.compressing.compress_to", watched)
    said = ("--provider", "openvino", "--provider-option", "num_streams=2", "-o", tmp_path / "out")
    fxd("compress", NET, "--budget", "latency:0.5", *said, code=1)
    assert seen["provider_options"] == seen["policy"].budget.options == {"num_streams": "2"}
    fxd("compress", NET, "--max-drop", "0.01", *said, code=1)
    assert seen["goal"].provider_options == {"num_streams": "2"}


def test_a_provider_that_does_not_start_with_its_options_is_told_before_the_work(
    fxd: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any, **__: Any) -> None:
        raise RuntimeError("/onnxruntime/state.cc:10 void make(const std::string&) Invalid option: foo")

    monkeypatch.setattr("fxdecomp.export.sessions.open_session", refuses)
    monkeypatch.setattr("fxdecomp.export.sessions.available_providers", lambda: (REMOTE,))
    said = ("--provider", REMOTE, "--provider-option", "foo=bar", "--method", "svd", "--rank", 0.5)
    _, error = fxd("compress", NET, *said, "-o", tmp_path / "out", code=1)
    assert f"{REMOTE} does not start with foo=bar: RuntimeError: Invalid option: foo" in error


def test_a_provider_that_vanishes_beside_one_that_is_there_changes_no_exit_code(
    dense: Path, fxd: Shell
) -> None:
    out, error = fxd("bench", dense, "--provider", "cuda", "--provider", "cpu", "--rounds", 2)
    assert "not available" in out
    assert "dense on CUDAExecutionProvider was not timed: not available" in error


REMOTE = "AzureExecutionProvider"
"""It comes with onnxruntime and takes no layer of any network."""


@pytest.mark.skipif(REMOTE not in available_providers(), reason="this onnxruntime has no such provider")
def test_a_provider_that_takes_only_part_of_a_network_is_a_row(
    dense: Path, fxd: Shell, tmp_path: Path
) -> None:
    out, error = fxd("bench", dense, "--provider", REMOTE, "--provider", "cpu", "--rounds", 2)
    assert "left 1 layer(s)" in " ".join(out.split())
    assert f"dense on {REMOTE} was not timed: left 1 layer(s) to another provider" in error
    arguments = ("--method", "svd", "--rank", 0.5, "--time", "--provider", REMOTE, "--quiet")
    out, _ = fxd("compress", NET, *arguments, "-o", tmp_path / "out")
    assert "ship small.onnx: not timed" in " ".join(out.split())
    assert "--time tells" not in out
    assert "left 3 layer(s) to another provider: 0, 2, 4" in " ".join(out.split())


def test_kernels_are_timed_as_a_table_as_data_and_as_a_picture(
    tmp_path: Path, fxd: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_bench, "_GEMM", 64)
    monkeypatch.setattr(kernel_bench, "_COPY_FLOATS", 1 << 16)
    monkeypatch.setattr(kernel_bench, "_TRIES", 1)
    chosen = ("--channel", 16, "--size", 8, "--kind", "pointwise", "--runs", 2, "-q")
    out, _ = fxd("bench-kernels", *chosen, "--plot", tmp_path / "map.svg")
    assert "kernel         channels  size" in out
    assert (tmp_path / "map.svg").stat().st_size > 1000
    data = json.loads(fxd("bench-kernels", *chosen, "--json")[0])
    assert [(point["kind"], point["channels"]) for point in data["points"]] == [("pointwise", 16)]
    _, error = fxd("bench-kernels", "--precision", "int4", code=1)
    assert "there is no 'int4'; wanted some of" in error
    _, error = fxd("bench-kernels", "--provider", "cuda", code=1)
    assert "CUDAExecutionProvider is not available; there are" in error


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_every_precision_has_its_own_distance_and_metric(
    precision: str, tmp_path: Path, fxd: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "machine", lambda: {"features": ["avx512_vnni"]})
    given = ("--method", "tucker2", "--rank", "0.5", "--calibration", BATCHES, "--quantize", precision)
    metric = ("--metric", "tests.cli_models:mean_output")
    out = " ".join(fxd("compress", NET, "-o", tmp_path / "out", *given, *metric, "-q")[0].split())
    lowered = tmp_path / "out" / f"small.{precision}.onnx"
    net, example = small_net()
    gm = fxdecomp.trace(net.eval(), example)
    small = fxdecomp.transform(gm, fxdecomp.Policy(method="tucker2", rank=0.5), calibration=batches())
    file = FileNetwork(small, lowered, example)
    with torch.no_grad():
        wanted, held = gm(batches()[3]).double(), batches()[3]
        power = (wanted - wanted.mean()).square().sum()
        errors = {
            name: float(((network(held).double() - wanted).square().sum() / power).sqrt())
            for name, network in {"small": small, f"small.{precision}": file}.items()
        }
    assert errors["small"] != pytest.approx(errors[f"small.{precision}"], rel=1e-9)
    judged = json.loads((tmp_path / "out" / "report.json").read_text())["judged"]
    for name, error in errors.items():
        (row,) = judged[name]["quality"]["outputs"]
        assert row["relative_error"] == pytest.approx(error, rel=1e-4)
        kind = "fp32" if name == "small" else precision
        assert judged[name]["quality"]["precision"] == kind
        assert f"{kind} differs from the original by {error:.1%}" in out
    for name, network in {"dense": gm, "small": small, f"small.{precision}": file}.items():
        assert judged[name]["metric"] == pytest.approx(mean_output(network), rel=1e-4)
        assert f"metric of {name}: {judged[name]['metric']:.4f}" in out
    told = read_metadata(lowered)
    assert told is not None
    assert told.quality is not None
    assert told.quality.precision == precision
    assert told.record is not None
    assert told.record.quality is None  # that of the network it was made from is not the file's
    exact = read_metadata(tmp_path / "out" / "small.onnx")
    assert exact is not None
    assert exact.quality == fxdecomp.report(small).quality
    page = (tmp_path / "out" / "report.html").read_text()
    assert exact.quality.sentence.replace("'", "&#39;") in page.partition("<main")[0]
    assert f"{errors[f'small.{precision}']:.1%}" in page
    text = " ".join(fxd("inspect", lowered)[0].split())
    assert f"{precision} differs from the original by" in text
    assert "fp32 differs" not in text


def test_the_last_line_of_the_output_warns_of_what_was_lost(tmp_path: Path, fxd: Shell) -> None:
    out, error = fxd("compress", NET, "-o", tmp_path / "out", "--method", "tucker2", "--rank", "0.1", "-q")
    told = json.loads((tmp_path / "out" / "report.json").read_text())["report"]["quality"]
    assert told["agreement"] < 0.9
    last = " ".join(out.partition("Everything is in")[2].split())
    assert f"warning: fp32 agrees with the original by {told['agreement']:.2f} only" in last
    assert ", ".join(told["costly"]) in last
    assert error == ""
    assert "warning: fp32 agrees" in (tmp_path / "out" / "report.html").read_text().partition("<main")[0]


def test_a_metric_that_a_file_cannot_serve_is_told(
    tmp_path: Path, fxd: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("--method", "tucker2", "--rank", "0.5", "--calibration", BATCHES, "--quantize", "fp16")
    fxd("compress", NET, "-o", tmp_path / "out", *given, "--metric", "tests.cli_models:first_weight", "-q")
    judged = json.loads((tmp_path / "out" / "report.json").read_text())["judged"]
    assert judged["small"]["problem"] == ""
    assert "StopIteration" in judged["small.fp16"]["problem"]
    assert judged["small.fp16"]["quality"]["precision"] == "fp16"


def test_compress_quantises_and_inspect_tells_what_was_done(
    tmp_path: Path, fxd: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "machine", lambda: {"features": ["avx512_vnni"]})
    common = ("compress", NET, "--method", "tucker2", "--rank", "0.5", "--calibration", BATCHES, "-q")
    out, _ = fxd(*common, "-o", tmp_path / "out", "--quantize", "int8")
    assert "int8 with 8-bit weights" in out
    result = json.loads((tmp_path / "out" / "report.json").read_text())
    assert result["quantised"]["quantization"]["kind"] == "int8"
    told = " ".join(fxd("inspect", tmp_path / "out" / "small.int8.onnx")[0].split())
    for part in (
        "written by fxdecomp",
        "1x3x8x8",
        "tucker2",
        "layers replaced",
        "relative error of the output",
    ):
        assert part in told
    data = json.loads(fxd("inspect", tmp_path / "out" / "small.onnx", "--json")[0])
    assert [row["site"] for row in data["record"]["outcomes"]] == ["0", "2", "4"]
    assert data["quantization"] is None
    fxd(*common, "-o", tmp_path / "half", "--quantize", "fp16")
    assert (tmp_path / "half" / "small.fp16.onnx").exists()
    _, error = fxd("compress", NET, "--method", "svd", "-o", tmp_path / "no", "--quantize", "int8", code=2)
    assert "--quantize int8 needs inputs: add --calibration or --images" in error
    _, error = fxd(*common, "-o", tmp_path / "no", "--quantize", "int4", code=2)
    assert "there is no precision 'int4'; there are int8 and fp16" in error
    _, error = fxd(
        *common[:-3], "--calibration", "tests.cli_models:not_a_module", "-o", tmp_path / "no", code=2
    )
    assert "tests.cli_models:not_a_module gives a int, wanted batches of inputs" in error
    assert not (tmp_path / "no").exists()


def test_the_plan_in_a_file_replays_to_the_same_file(tmp_path: Path, fxd: Shell) -> None:
    fxd("compress", NET, "--method", "tucker2", "--rank", "energy:0.6", "-o", tmp_path / "a", "-q")
    fxd("compress", NET, "--policy", tmp_path / "a" / "small.onnx", "-o", tmp_path / "b", "-q")
    assert_same_network(tmp_path / "a" / "small.onnx", tmp_path / "b" / "small.onnx")
    # And once more: a file made from a plan carries the same plan.
    fxd("compress", NET, "--policy", tmp_path / "b" / "small.onnx", "-o", tmp_path / "c", "-q")
    assert (tmp_path / "b" / "small.onnx").read_bytes() == (tmp_path / "c" / "small.onnx").read_bytes()


def assert_same_network(a: Path, b: Path) -> None:
    first, second = onnx.load(a), onnx.load(b)
    assert first.graph.SerializeToString(deterministic=True) == second.graph.SerializeToString(
        deterministic=True
    )
    plans = [read_metadata(path).record.plan for path in (a, b)]
    assert plans[0] == plans[1] is not None


def test_a_calibrated_plan_replays_to_the_same_file(tmp_path: Path) -> None:
    from tests.cli_models import batches, small_net

    net, example = small_net()
    gm = fxdecomp.trace(net, example)
    first = fxdecomp.transform(gm, Policy("tucker2", 0.5), calibration=batches())
    to_onnx(first, example, tmp_path / "a.onnx")
    plan = fxdecomp.report(first).plan
    again = fxdecomp.transform(gm, Policy.from_plan(plan), calibration=batches())
    to_onnx(again, example, tmp_path / "b.onnx")
    assert_same_network(tmp_path / "a.onnx", tmp_path / "b.onnx")


def test_a_file_without_a_plan_is_named(dense: Path, tmp_path: Path, fxd: Shell) -> None:
    _, error = fxd("compress", NET, "--policy", dense, "-o", tmp_path / "no", code=2)
    assert f"{dense} holds no plan" in error
    assert "nothing was decomposed" in fxd("inspect", dense)[0]


def test_no_file_that_is_read_is_replaced(
    dense: Path, tmp_path: Path, fxd: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxdecomp.cli.loading.load_model", None)  # nothing is loaded before the refusal
    policy = tmp_path / "policy.toml"
    policy.write_text('# by hand\nmethod = "svd"\nrank = 2\n')
    for name in ("dense.onnx", "small.onnx", "small.pt2", "small.fp16.onnx"):
        (tmp_path / name).write_bytes(dense.read_bytes())
    (tmp_path / "link").symlink_to(tmp_path)
    for arguments in (
        (NET, "--policy", policy),
        (NET, "--policy", tmp_path / "link" / "policy.toml"),
        (NET, "--policy", tmp_path / "small.onnx"),
        (tmp_path / "dense.onnx", "--method", "svd", "--time"),
        (tmp_path / "small.onnx", "--method", "svd"),
        (tmp_path / "small.pt2", "--method", "svd"),
        (tmp_path / "small.fp16.onnx", "--method", "svd", "--quantize", "fp16"),
    ):
        _, error = fxd("compress", *arguments, "-o", tmp_path, code=2)
        assert "is read here and would be replaced; name another folder with -o" in error


def test_compress_times_with_the_threads_and_the_provider_that_are_named(tmp_path: Path, fxd: Shell) -> None:
    common = ("compress", NET, "--method", "svd", "--rank", "4", "--time", "--json")
    timings = json.loads(fxd(*common, "-o", tmp_path / "a", "--threads", 2)[0])["timings"]["timings"]
    assert {(row["provider"], row["threads"]) for row in timings} == {("CPUExecutionProvider", 2)}
    _, error = fxd(*common, "-o", tmp_path / "b", "--provider", "cuda", code=1)
    assert "CUDAExecutionProvider is not available; there are " in error
    assert not (tmp_path / "b").exists()


def test_what_cannot_be_written_is_told_before_the_work(
    dense: Path, tmp_path: Path, fxd: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("the work began")

    for name in ("compressing.running.trace", "export.benchmark", "export.bench_kernels"):
        monkeypatch.setattr(f"fxdecomp.{name}", work)
    file = tmp_path / "file"
    file.write_text("")
    compress = ("compress", NET, "--method", "svd", "-o")
    for folder in (file, file / "below"):
        _, error = fxd(*compress, folder, code=2)
        assert f"{file} is a file, where a folder is wanted; name another folder" in error
    _, error = fxd("bench", dense, "--html", tmp_path / "no" / "page.html", code=2)
    assert f"the folder {tmp_path / 'no'} does not exist; create it first" in error
    _, error = fxd("bench", dense, "--html", tmp_path, code=2)
    assert f"{tmp_path} cannot be written; name another file" in error
    _, error = fxd("bench-kernels", "--plot", tmp_path / "map.xyz", code=1)
    assert "no picture ends in .xyz; use .svg, .png or .pdf" in error
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    _, error = fxd(*compress, tmp_path / "out", code=1)
    assert "onnxruntime is not installed" in error


def test_an_onnx_file_is_a_model(tmp_path: Path, fxd: Shell) -> None:
    path = tmp_path / "foreign.onnx"
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Conv2d(32, 4, 1))
    to_onnx(torch.fx.symbolic_trace(net.eval()), torch.randn(1, 3, 8, 8), path)
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)
    assert [row["site"] for row in json.loads(fxd("inspect", path, "--json", "--input", "1x3x8x8")[0])] == [
        "0",
        "2",
        "3",
    ]
    fxd(
        "compress",
        path,
        "--method",
        "tucker2",
        "--rank",
        "2,2",
        "-o",
        tmp_path / "out",
        "--input",
        "1x3x8x8",
        "-q",
    )
    assert "2.core" in {node.name for node in onnx.load(tmp_path / "out" / "small.onnx").graph.node}
    _, error = fxd("inspect", tmp_path / "absent.onnx", code=2)
    assert "there is no file" in error
