import json
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from fxdecomp.errors import BenchmarkError
from fxdecomp.export import BenchmarkReport, Kernel, Timing, benchmark, kernels, loading, sessions, to_onnx
from fxdecomp.export.onnx_layers import OnnxLayers
from fxdecomp.export.ratios import ratio_of_medians
from fxdecomp.providers import Provider

from .nets import Convolutional, Recurrent, Residual, traced, with_record


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    nets = {
        "conv": (with_record(traced(Convolutional())), torch.randn(1, 3, 16, 16)),
        "rnn": (traced(Recurrent()), torch.randn(1, 1, 16, 24)),
        "residual": (traced(Residual()), torch.randn(1, 3, 16, 16)),
        "small": (traced(nn.Sequential(nn.Conv2d(32, 16, 3, padding=1))), torch.randn(1, 32, 32, 32)),
        "big": (traced(nn.Sequential(nn.Conv2d(32, 256, 3, padding=1))), torch.randn(1, 32, 32, 32)),
    }
    for name, (gm, example) in nets.items():
        to_onnx(gm, example, folder / f"{name}.onnx", dynamic_axes=(3,) if name == "rnn" else ())
    fixed = traced(nn.Sequential(nn.Linear(8, 4)))
    to_onnx(fixed, torch.randn(3, 8), folder / "fixed.onnx", dynamic_batch=False)
    return {file.stem: file for file in folder.iterdir()}


def test_the_report_holds_times_settings_and_a_ratio_with_its_interval(files: dict[str, Path]) -> None:
    report = benchmark({"big": files["big"], "small": files["small"]}, rounds=10)
    ratio = report.ratio("big", "small")
    # How large it is depends on the machine's day: only the arithmetic is tested.
    assert ratio.low <= ratio.value <= ratio.high
    assert report.ratio("small", "big").value == pytest.approx(1 / ratio.value)
    assert report.settings["rounds"] == 10
    assert report.settings["files"]["big"]["bytes"] == files["big"].stat().st_size
    assert report.machine["versions"]["torch"] == version("torch")
    row = report.timing("big")
    assert (row.provider, row.threads, row.batch, len(row.rounds_s)) == ("CPUExecutionProvider", 1, 1, 10)
    assert row.p95_s >= row.median_s > 0
    assert row.first_run_s > 0
    assert row.load_s > 0
    assert list(row.nodes) == ["CPUExecutionProvider"]
    assert row.nodes["CPUExecutionProvider"] >= 1
    assert not report.problems
    assert "x [" in str(report)


def test_progress_is_told_after_every_round_of_every_setting(files: dict[str, Path]) -> None:
    told: list[tuple[str, int, int]] = []
    benchmark(
        {"small": files["small"]},
        threads=[1, 2],
        rounds=2,
        profile=False,
        progress=lambda work, done, total: told.append((work, done, total)),
    )
    assert [(done, total) for _, done, total in told] == 2 * [(0, 2), (1, 2), (2, 2)]
    assert ["1 thread(s)" in work for work, _, _ in told] == 3 * [True] + 3 * [False]


def test_visits_are_interleaved_and_alternate(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    visits = []
    real = loading.Runner.visit

    def visit(self: loading.Runner) -> None:
        visits.append(self.model)
        real(self)

    monkeypatch.setattr(loading.Runner, "visit", visit)
    benchmark({"a": files["small"], "b": files["small"]}, rounds=4, profile=False)
    assert "".join(visits) == "abbaabba"


def test_the_kernel_table_names_every_stage_and_counts_its_macs(files: dict[str, Path]) -> None:
    report = benchmark({"conv": files["conv"]}, rounds=2, batch_sizes=2)
    rows = {row.name: row for row in report.kernels["conv"]}
    pixels = 2 * 16 * 16
    assert {name: (row.kind, row.macs) for name, row in rows.items()} == {
        "features.0": ("dense", 16 * 3 * 9 * pixels),
        "features.2.pointwise_in": ("pointwise", 8 * 16 * pixels),
        "features.2.core": ("core", 8 * 8 * 9 * pixels),
        "features.2.pointwise_out": ("pointwise", 32 * 8 * pixels),
        "features.4.pointwise_in": ("pointwise", 16 * 32 * pixels),
        "features.4.vertical": ("depthwise", 16 * 3 * pixels),
        "features.4.horizontal": ("depthwise", 16 * 3 * pixels),
        "features.4.pointwise_out": ("pointwise", 32 * 16 * pixels),
        "classifier.first": ("linear", 2 * 8 * 32),
        "classifier.second": ("linear", 2 * 10 * 8),
        "other": ("other", 0),
    }
    assert sum(row.share for row in rows.values()) == pytest.approx(1)
    core = rows["features.2.core"]
    assert core.gflops == pytest.approx(2 * core.macs / core.time_s / 1e9)
    assert core.provider == "CPUExecutionProvider"
    text = report.kernel_table("conv")
    assert "features.2.core" in text
    assert "total" in text
    with pytest.raises(BenchmarkError, match="no kernel table of 'dense'; there are \\['conv'\\]"):
        report.kernel_table("dense")


def test_fused_and_recurrent_layers_are_found(files: dict[str, Path]) -> None:
    report = benchmark({"rnn": files["rnn"], "residual": files["residual"]}, rounds=2)
    rnn = {row.name: row.macs for row in report.kernels["rnn"]}
    columns = 24
    assert rnn == {
        "conv": 16 * 9 * 16 * columns,
        "rnn": columns * 2 * (32 * 16 + 32 * 8),
        "head": columns * 16 * 12,
        "other": 0,
    }
    assert [row.name for row in report.kernels["residual"]] == [
        "stem",
        "first",
        "second.pointwise_in",
        "second.core",
        "second.pointwise_out",
        "other",
    ]


@pytest.mark.parametrize(
    ("node", "layer"),
    [
        ("first", "first"),
        ("fused first", "first"),
        ("relu_1_nchwc", "first"),
        ("conv2d_4_nchwc_token_7", "second.pointwise_out"),
        ("first/MatMulAddFusion", "first"),
        ("first_nhwc", "first"),
        ("ReorderOutput", None),
        ("node_relu_1", None),
    ],
)
def test_names_of_the_runtime_lead_back_to_the_layer(
    files: dict[str, Path], node: str, layer: str | None
) -> None:
    found = kernels.find_layer(node, OnnxLayers(files["residual"]))
    assert (found.name if found else None) == layer


def test_settings_multiply(files: dict[str, Path]) -> None:
    report = benchmark({"conv": files["conv"]}, threads=(1, 0), batch_sizes=(1, 4), rounds=2, profile=False)
    threads = report.timings[-1].threads
    assert [(row.threads, row.batch) for row in report.timings] == [
        (1, 1),
        (1, 4),
        (threads, 1),
        (threads, 4),
    ]
    assert report.timing("conv", batch=4).median_s > report.timing("conv", batch=1).median_s
    with pytest.raises(BenchmarkError, match="no times for model conv, batch 9"):
        report.ratio("conv", "conv", batch=9)


def test_what_cannot_run_is_a_row(files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    report = benchmark(
        {"conv": files["conv"], "fixed": files["fixed"], "broken": tmp_path / "broken.onnx"},
        providers=["CUDAExecutionProvider", "CPUExecutionProvider"],
        rounds=2,
    )
    assert all(row.problem.startswith("not available in this onnxruntime") for row in report.timings[:3])
    assert "CPUExecutionProvider" in report.timings[0].problem
    assert [bool(row.problem) for row in report.timings[3:]] == [False, False, True]
    assert report.timings[4].batch == 3
    assert "cannot load" in report.timings[5].problem
    assert "not available" in str(report)
    with pytest.raises(BenchmarkError, match=r"no times for model conv, provider CUDA.*not available"):
        report.ratio("conv", "fixed", provider="CUDAExecutionProvider")
    other = benchmark({"fixed": files["fixed"]}, batch_sizes=4, rounds=2)
    assert other.problems[0].problem == "the file fixes the batch to 3"


def test_a_provider_that_leaves_layers_to_the_cpu_is_a_row(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Session:
        """Claims a provider, and runs on the CPU."""

        def __init__(self, session: object) -> None:
            self.session = session

        def get_providers(self) -> list[str]:
            return ["FancyExecutionProvider", "CPUExecutionProvider"]

        def __getattr__(self, name: str) -> object:
            return getattr(self.session, name)

    real = loading.open_session
    monkeypatch.setattr(loading, "available_providers", lambda: ("FancyExecutionProvider",))
    monkeypatch.setattr(loading, "open_session", lambda path, **_: Session(real(path)))
    monkeypatch.setattr(
        kernels, "open_session", lambda path, **kw: real(path, **kw | {"provider": loading.CPU})
    )
    report = benchmark({"conv": files["conv"]}, providers=["FancyExecutionProvider"], rounds=2)
    assert report.problems[0].problem == (
        "left 10 layer(s) to another provider: features.0, features.2.pointwise_in, features.2.core"
    )
    monkeypatch.setattr(loading, "open_session", lambda path, **_: real(path))
    report = benchmark({"conv": files["conv"]}, providers=["FancyExecutionProvider"], rounds=2)
    assert report.problems[0].problem == (
        "could not be started, onnxruntime says why on standard error; it fell back to CPUExecutionProvider"
    )


def test_free_axes_come_from_the_file_the_caller_or_an_error(files: dict[str, Path], tmp_path: Path) -> None:
    by_file = benchmark({"rnn": files["rnn"]}, rounds=2)
    assert by_file.kernels["rnn"][0].macs == 16 * 9 * 16 * 24
    by_axes = benchmark({"rnn": files["rnn"]}, rounds=2, axes={"width": 40})
    assert by_axes.kernels["rnn"][0].macs == 16 * 9 * 16 * 40
    image = np.zeros((2, 1, 16, 8), np.float32)
    by_inputs = benchmark({"rnn": files["rnn"]}, rounds=2, inputs={"image": image})
    assert by_inputs.kernels["rnn"][0].macs == 2 * 16 * 9 * 16 * 8
    assert by_inputs.timings[0].batch == 2
    model = onnx.load(files["rnn"])
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(BenchmarkError, match=r"axis 3 \('width'\) has no length; give it with axes="):
        benchmark({"rnn": tmp_path / "foreign.onnx"}, rounds=2)


def test_reports_are_saved_whole_and_loaded(files: dict[str, Path], tmp_path: Path) -> None:
    report = benchmark({"conv": files["conv"]}, rounds=2)
    path = tmp_path / "report.json"
    report.save(path)
    assert BenchmarkReport.load(path) == report
    assert json.loads(path.read_text())["kernels"]["conv"][0]["gflops"] > 0
    assert list(tmp_path.iterdir()) == [path]
    path.write_text("{}")
    with pytest.raises(BenchmarkError, match="holds no saved benchmark"):
        BenchmarkReport.load(path)


def test_the_interval_covers_the_true_ratio_and_pairs_rounds() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        drift = generator.uniform(1, 3, 40)
        a, b = drift * generator.normal(2.0, 0.05, 40), drift * generator.normal(1.0, 0.025, 40)
        ratio = ratio_of_medians(tuple(a), tuple(b), seed=trial)
        covered += ratio.low <= 2.0 <= ratio.high
        # The machine's speed varies by a factor of three; paired, that all but cancels.
        assert ratio.high - ratio.low < 0.5
    assert covered >= 180


def test_wrong_arguments_are_named(files: dict[str, Path]) -> None:
    with pytest.raises(BenchmarkError, match=r"no such file: no\.onnx"):
        benchmark({"a": "no.onnx"})
    with pytest.raises(BenchmarkError, match="no model to time"):
        benchmark({})
    with pytest.raises(BenchmarkError, match="rounds is 1"):
        benchmark({"a": files["conv"]}, rounds=1)
    with pytest.raises(BenchmarkError, match="give either inputs or batch_sizes"):
        benchmark({"a": files["conv"]}, inputs={}, batch_sizes=1)
    with pytest.raises(BenchmarkError, match="the given inputs lack x"):
        benchmark({"a": files["conv"]}, inputs={"y": np.zeros(1)})


def test_a_table_of_text_shows_what_was_measured() -> None:
    rows = (
        Timing("dense", "CPUExecutionProvider", 1, 1, (2e-3, 2e-3), 2e-3, 3e-3, 4e-3, 5e-3),
        Timing("small", "CPUExecutionProvider", 1, 1, (1e-3, 1e-3), 1e-3, 1.5e-3, 2e-3, 5e-3),
        Timing("small", "CUDAExecutionProvider", 1, 1, problem="not available"),
    )
    kernel = Kernel("features.3.core", "core", 1e-3, 1.0, 5_000_000, "CPUExecutionProvider")
    report = BenchmarkReport(rows, {"small": (kernel,)})
    assert str(report) == (
        "model  provider                  threads batch  first ms median ms   p95 ms  faster than first\n"
        "dense  CPUExecutionProvider            1     1     4.000     2.000    3.000\n"
        "small  CPUExecutionProvider            1     1     2.000     1.000    1.500  2.00x [2.00, 2.00]\n"
        "small  CUDAExecutionProvider           1     1  not available"
    )
    weighed = replace(report, timings=(replace(rows[0], peak_bytes=3_000_000), *rows[1:]))
    assert str(weighed).splitlines()[1].endswith("    3.000      3.0")
    assert report.kernel_table("small") == (
        "layer            kind            ms  share     MMACs  GFLOP/s\n"
        "features.3.core  core         1.000 100.0%      5.00     10.0\n"
        "total            core         1.000 100.0%      5.00     10.0"
    )


def test_the_runtime_is_needed(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(Exception, match=r"install `fxdecomp\[cpu\]`"):
        benchmark({"conv": files["conv"]}, rounds=2)


def test_peak_memory_is_that_of_the_model(tmp_path: Path) -> None:
    large = nn.Sequential(nn.Linear(2048, 2048), nn.Linear(2048, 2048))
    to_onnx(traced(large), torch.randn(1, 2048), tmp_path / "large.onnx")
    to_onnx(traced(nn.Sequential(nn.Linear(8, 8))), torch.randn(1, 8), tmp_path / "small.onnx")
    report = benchmark(
        {name: tmp_path / f"{name}.onnx" for name in ("large", "small")}, rounds=2, memory=True
    )
    peaks = {row.model: row.peak_bytes for row in report.timings}
    weights = 2 * 2048 * 2048 * 4
    assert weights < peaks["large"] < 6 * weights
    assert peaks["small"] < peaks["large"] / 2
    assert benchmark({"small": tmp_path / "small.onnx"}, rounds=2).timings[0].peak_bytes is None


def test_inputs_and_outputs_stay_on_the_device(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "described", lambda name: Provider(name, device="cpu"))
    session = sessions.open_session(files["conv"])
    feed = {"x": np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)}
    binding = sessions.bound_run(session, "CPUExecutionProvider", feed)()
    np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], session.run(None, feed)[0])
    assert benchmark({"conv": files["conv"]}, rounds=2).problems == ()


def test_a_plugin_provider_is_found_and_used(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU, hidden from the list of built-in providers, is still among the registered devices."""
    runtime = sessions.onnxruntime()
    monkeypatch.setattr(runtime, "get_available_providers", lambda: ["OtherExecutionProvider"])
    assert sessions.available_providers() == ("OtherExecutionProvider", "CPUExecutionProvider")
    report = benchmark({"conv": files["conv"]}, rounds=2)
    assert report.problems == ()
    assert report.kernels["conv"][0].provider == "CPUExecutionProvider"


def test_options_reach_the_provider_and_the_report(files: dict[str, Path]) -> None:
    report = benchmark(
        {"conv": files["conv"]},
        providers=["CUDAExecutionProvider", "TensorrtExecutionProvider"],
        provider_options={"TensorrtExecutionProvider": {"trt_fp16_enable": "1"}},
        rounds=2,
    )
    assert report.settings["provider_options"] == {
        "CUDAExecutionProvider": {"cudnn_conv_algo_search": "EXHAUSTIVE"},
        "TensorrtExecutionProvider": {"trt_timing_cache_enable": "1", "trt_fp16_enable": "1"},
    }
    assert report.settings["io_binding"] == ["CUDAExecutionProvider", "TensorrtExecutionProvider"]


OTHERS = [name for name in sessions.available_providers() if name != "CPUExecutionProvider"]


@pytest.mark.skipif(not OTHERS, reason="onnxruntime has no provider but the CPU here")
@pytest.mark.parametrize("provider", OTHERS)
def test_every_other_provider_runs_every_layer_or_says_why_not(files: dict[str, Path], provider: str) -> None:
    models = {name: files[name] for name in ("big", "small", "residual")}
    report = benchmark(models, providers=[provider], rounds=3)
    for row in report.timings:
        assert (row.median_s > 0) != bool(row.problem)
        assert row.problem or row.nodes[provider] > 0
    if not report.problems:
        assert report.ratio("big", "small").value > 1


@pytest.mark.parametrize("threads", [-1, True, 1.5, 10**6])
def test_a_number_of_threads_that_cannot_be_is_refused(threads: Any, files: dict[str, Path]) -> None:
    """A million of them would end the process."""
    with pytest.raises(BenchmarkError, match=f"threads is {threads}; wanted a whole number from 0"):
        benchmark({"conv": files["conv"]}, threads=[threads], rounds=2)
