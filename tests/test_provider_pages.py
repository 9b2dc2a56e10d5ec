"""The pages of measurements on other providers, as far as they are made without them."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import gpu, providers, torch_times
from fxdecomp.export import BenchmarkReport, Timing
from fxdecomp.export.sessions import available_providers
from fxdecomp.providers import CUDA, TENSORRT

pytest.importorskip("onnxruntime")

S = (0.004, 0.004)
ROWS = (
    Timing("dense", TENSORRT.name, 1, 32, S, 0.004, 0.004),
    Timing("Latency(0.5)", TENSORRT.name, 1, 32, (0.002, 0.002), 0.002, 0.002),
    Timing("dense", CUDA.name, 1, 1, problem="not available"),
)


def test_without_a_gpu_it_is_told_what_would_be_done_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu, "available_providers", lambda: ("CPUExecutionProvider",))
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path / "gpu.md")])
    gpu.main()
    told = capsys.readouterr().out
    assert f"no {TENSORRT.name} or {CUDA.name} here, only CPUExecutionProvider" in told
    assert " 1. plan vgg16 on tensorrt in fp16" in told
    assert "36. plan bert_base on cuda in int8" in told
    assert list(tmp_path.iterdir()) == []


def test_the_page_has_a_row_a_setting_and_says_what_was_not_reached() -> None:
    step, other = (gpu.Step("vgg16", name, "fp16") for name in (TENSORRT.name, CUDA.name))
    assert (step.own_fp16, other.own_fp16) == ({"trt_fp16_enable": "1"}, {})
    made = [
        gpu.Made(step, {"Latency(0.35)": "nothing worth changing"}, BenchmarkReport(ROWS[:2])),
        gpu.Made(other, problem="cannot load"),
    ]
    lines = gpu.page(made, [gpu.Step("resnet50", CUDA.name, "int8")], {}).splitlines()
    assert "| tensorrt | fp16 | 32 | 4.000 | 2.00x [2.00, 2.00] |  |" in lines
    assert "| cuda | fp16 | | cannot load | | |" in lines
    assert "- Latency(0.35): nothing worth changing" in lines
    assert lines[-1] == "- resnet50 on cuda in int8"


def test_a_provider_that_cannot_run_a_file_is_a_cell_that_says_so() -> None:
    shown = providers.table(BenchmarkReport(ROWS), ["dense", "Latency(0.5)"], [TENSORRT.name, CUDA.name])
    assert shown.splitlines()[2:] == [
        "| dense | 4.00 ms | not available |",
        "| Latency(0.5) | 2.00 ms, 2.00x [2.00, 2.00] |  |",
    ]
    assert providers.present()[0] in available_providers()


def test_pytorch_is_a_timer_and_what_does_not_compile_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(model: nn.Module, **_: object) -> nn.Module:
        if isinstance(model, nn.Linear):
            return model
        raise RuntimeError("no compiler here\nat all")

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    networks = {"dense": nn.Linear(8, 8), "other": nn.Sequential(nn.Linear(8, 8))}
    report = torch_times.torch_report(networks, (torch.randn(4, 8),), rounds=2)
    rows = {(row.model, row.provider): row for row in report.timings}
    assert rows["other", torch_times.COMPILED].problem == "does not compile: RuntimeError: no compiler here"
    assert report.ratio("dense", "other", provider=torch_times.EAGER).value > 0
    assert rows["dense", torch_times.COMPILED].batch == 4
