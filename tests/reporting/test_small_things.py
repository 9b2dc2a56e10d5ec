"""What is shown in notebooks and diffs, and what is said where a file or a network is no such thing."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxdecomp
from fxdecomp.compressing.programs import program_of
from fxdecomp.export import BenchmarkReport, Timing
from fxdecomp.searching.trials import SearchResult, Trial
from tests.nets import HALF, image, small_vgg


def test_benchmarks_and_searches_are_tables_in_notebooks() -> None:
    rows = [
        Timing(name, "CPUExecutionProvider", 1, 1, (s, s), s, s) for name, s in (("<b>", 4.0), ("small", 2.0))
    ]
    absent = Timing("small", "CUDAExecutionProvider", 1, 1, problem="not available")
    html = BenchmarkReport((*rows, absent))._repr_html_()
    assert html.count("<tr>") == 4
    assert "&lt;b&gt;" in html
    assert "2.00x [2.00, 2.00]" in html
    assert "not available" in html
    gm = fxdecomp.trace(nn.Sequential(nn.Linear(4, 4)), torch.randn(1, 4))
    trials = (
        Trial(1.0, 100, 10, 0.9, accepted=True),
        Trial(0.5, 50, 5, float("nan"), accepted=False, problem="cannot be met"),
    )
    html = SearchResult(gm, trials, trials[0], 0.01, notes=("a note",))._repr_html_()
    assert "accepted, taken" in html
    assert "cannot be met" in html
    assert html.endswith("<p>a note</p>")


def test_a_diff_has_what_a_layer_became_below_the_layer() -> None:
    gm = fxdecomp.trace(small_vgg(), image(1, 3, 16, 16))
    small = fxdecomp.transform(gm, HALF)
    lines = fxdecomp.graph_diff(gm, small).splitlines()[3:]
    owner, seen = "", 0
    for line in lines:
        called = line.partition(" = ")[2].partition("(")[0]
        if line[0] == "-":
            owner = called
        elif line[0] == "+" and called.endswith((".pointwise_in", ".core", ".pointwise_out")):
            assert called.startswith(f"{owner}.")
            seen += 1
    assert seen >= 6
    texts = {"-": [], "+": [], " ": []}
    for line in lines:
        texts[line[0]].append(line[1:])
    for kind, graph in (("-", gm), ("+", small)):
        kept = [line[1:] for line in lines if line[0] in (" ", kind)]
        from fxdecomp.reporting.graph_diff import graph_text

        assert kept == graph_text(graph), "applied, the diff makes one graph of the other"


def test_a_network_or_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        fxdecomp.FxdecompError, match=r"to_onnx takes a GraphModule, got Linear; use fxdecomp.trace"
    ):
        fxdecomp.export.to_onnx(nn.Linear(4, 2), torch.randn(1, 4), tmp_path / "x.onnx")  # type: ignore[arg-type]
    gm = fxdecomp.trace(nn.Sequential(nn.Linear(4, 4)), torch.randn(1, 4))
    with pytest.raises(fxdecomp.FxdecompError, match="nodir does not exist; create it first"):
        fxdecomp.report(gm).to_html(tmp_path / "nodir" / "x.html")
    assert list(tmp_path.iterdir()) == []


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(x)[0])


def test_a_recurrent_network_is_written_as_a_program_without_a_warning() -> None:
    x = torch.randn(2, 5, 8)
    gm = fxdecomp.trace(Recurrent(), x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        program = program_of(gm, (x,), {}, free_batch=True)
    assert torch.allclose(program.module()(x), gm(x), atol=1e-6)  # type: ignore[operator]


def test_errors_of_outputs_come_before_errors_of_weights() -> None:
    x = torch.randn(16, 64)
    gm = fxdecomp.trace(nn.Sequential(nn.Linear(64, 64)), x)
    policy = fxdecomp.Policy("svd", 8)
    plain, fitted = (
        fxdecomp.report(fxdecomp.transform(gm, policy, calibration=data)) for data in (None, [x, x])
    )
    for told, word in ((plain, "weight"), (fitted, "output")):
        assert f"% {word}" in str(told)
        assert f"% {word}" in told._repr_html_()
