"""`run_demo`: the recogniser through the whole path, dense against compressed.

Tucker-2 at one share of the channels for the six inner convolutions, and fewer states for the two LSTMs,
without training: once from the weights alone, once fitted to 64 unlabelled lines. All three networks read the
same fresh lines; the dense and the fitted one are exported, read through ONNX Runtime, and timed against each
other.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from fxdecomp.demo.judging import Reading, judge, onnx_reader
from fxdecomp.demo.lines import WIDTH, Split, render_lines
from fxdecomp.demo.recogniser import load_recogniser
from fxdecomp.errors import FxdecompError
from fxdecomp.export import BenchmarkReport, benchmark, to_onnx
from fxdecomp.export.sessions import thread_count
from fxdecomp.files import write_json
from fxdecomp.pipeline import transform
from fxdecomp.policy import Policy
from fxdecomp.policy.rules import Rule
from fxdecomp.progress import Progress, silent
from fxdecomp.ranks import Ratio
from fxdecomp.reporting import Frontier, FrontierPoint, Report, Variant, report
from fxdecomp.reporting.text import short
from fxdecomp.tracing import trace

DEMO_POLICY = Policy(
    rules=[
        Rule("features.conv*", method="tucker2", rank=Ratio(0.4, multiple_of=16)),
        Rule("context*.lstm", width=160),
    ],
    exclude=["features.conv1"],
)
"""All dense convolutions but the first, whose one input channel leaves nothing to decompose; and of the 256
states of each LSTM's directions 160."""

CALIBRATION_LINES = 64
_BATCH = 8
_STEPS = 7


@dataclass(frozen=True, slots=True, eq=False)
class DemoResult:
    """What the demo measured.

    Attributes:
        readings: How well `dense`, `weight-only` and `small` (calibrated) read, by name.
        sizes_bytes: Size of each ONNX file, of `dense` and `small`.
        params: Parameters of each network, all layers counted.
        timings: `dense` and `small` on one thread and on all.
        layers: What became of everything that holds weights.
        folder: Where the files are.
    """

    readings: dict[str, Reading]
    sizes_bytes: dict[str, int]
    params: dict[str, int]
    timings: BenchmarkReport
    layers: Report
    folder: Path

    @property
    def macs(self) -> dict[str, int]:
        """Multiply-accumulates of each network, for one line."""
        counts = dict.fromkeys(self.readings, self.layers.macs_after)
        return counts | {"dense": self.layers.macs_before}

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON data."""
        return {
            "readings": {name: reading.to_dict() for name, reading in self.readings.items()},
            "sizes_bytes": self.sizes_bytes,
            "params": self.params,
            "timings": self.timings.to_dict(),
            "report": self.layers.to_dict(),
        }

    @property
    def readings_text(self) -> str:
        """A line for each network: how well it reads, and how large it is."""
        rows = [f"{'':12}{'exact lines':>12}{'errors':>8}{'MACs':>9}{'params':>9}{'file':>9}"]
        rows += [
            f"{name:12}{reading.exact:>12.1%}{reading.cer:>8.2%}{short(self.macs[name]):>9}"
            f"{short(self.params[name]):>9}{self._size(name):>9}"
            for name, reading in self.readings.items()
        ]
        count = self.readings["dense"].count
        title = f"{count} fresh lines; errors are wrong characters; MACs of one line"
        return "\n".join([title, *rows])

    @property
    def written_text(self) -> str:
        """Where the files are."""
        return f"written to {self.folder}: dense.onnx, small.onnx, demo.json, report.html, layers.png"

    def __str__(self) -> str:
        return "\n\n".join(
            [
                str(self.layers),
                *(
                    f"{name}, by kernel, {self.timings.timings[0].threads} thread(s):\n"
                    + self.timings.kernel_table(name)
                    for name in self.timings.kernels
                ),
                self.readings_text,
                str(self.timings),
                self.written_text,
            ]
        )

    def _size(self, name: str) -> str:
        return f"{self.sizes_bytes[name] / 1e6:.1f} MB" if name in self.sizes_bytes else "-"


def run_demo(
    folder: Path,
    *,
    lines: int = 500,
    width: int = WIDTH,
    seed: int = 0,
    command: str = "",
    progress: Progress = silent,
) -> DemoResult:
    """Compress the recogniser and measure what it costs and brings.

    Args:
        folder: Made if it does not exist; the ONNX files, `demo.json`, `report.html` and `layers.png`
            appear in it.
        lines: Number of fresh lines to judge by.
        width: Width of a line in pixels.
        seed: Seed of the lines.
        command: The command that asked for it, for the report.
        progress: Told of every finished step.

    Raises:
        FxdecompError: The extra `demo` is not installed, or the weights are not the published ones.
    """
    _check_extra()
    folder.mkdir(parents=True, exist_ok=True)
    fresh = render_lines(lines, Split.JUDGE, seed=seed, width=width)
    progress("demo", 1, _STEPS)
    dense = trace(load_recogniser(), fresh.images[:1])
    unlabelled = render_lines(CALIBRATION_LINES, Split.CALIBRATION, seed=seed, width=width).images
    small = transform(dense, DEMO_POLICY, calibration=torch.split(unlabelled, _BATCH))
    progress("demo", 2, _STEPS)
    networks = {"dense": dense, "weight-only": transform(dense, DEMO_POLICY), "small": small}
    paths = {name: folder / f"{name}.onnx" for name in ("dense", "small")}
    sizes = {name: to_onnx(networks[name], fresh.images[:1], path).size_bytes for name, path in paths.items()}
    progress("demo", 3, _STEPS)
    readings = {}
    for step, (name, network) in enumerate(networks.items(), start=4):
        read = onnx_reader(paths[name]) if name in paths else network
        readings[name] = judge(read, fresh, progress=progress, work=f"lines read, {name}")
        progress("demo", step, _STEPS)
    threads = sorted({1, thread_count(0)})
    timings = benchmark(paths, threads=threads, progress=progress)
    progress("demo", _STEPS, _STEPS)
    params = {name: _params(gm) for name, gm in networks.items()}
    result = DemoResult(readings, sizes, params, timings, report(small), folder)
    write_json(folder / "demo.json", result.to_dict())
    page = _report(result, dense, small, command)
    page.to_html(folder / "report.html", title="fxdecomp demo: EasyOCR's English recogniser")
    _draw(page, folder / "layers.png")
    return result


def _draw(report: Report, path: Path) -> None:
    """The layers' times as a picture, in a figure of its own: nothing is shown on a screen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    report.plot_layers(figure.subplots()).set_title("One line of text, one thread: time of each layer")
    figure.savefig(path, dpi=120)


def _report(result: DemoResult, dense: GraphModule, small: GraphModule, command: str) -> Report:
    """The report of the demo, with everything that it measured."""
    macs = result.macs
    variants = tuple(
        Variant(
            name,
            {"lines read exactly": f"{reading.exact:.1%}", "wrong characters": f"{reading.cer:.2%}"},
            macs[name],
            result.params[name],
            result.sizes_bytes.get(name),
        )
        for name, reading in result.readings.items()
    )
    points = tuple(
        FrontierPoint(name, macs[name], reading.exact, chosen=name == "small")
        for name, reading in result.readings.items()
    )
    return Report(
        result.layers.record,
        dense,
        small,
        result.timings,
        frontier=Frontier(points, "multiply-accumulates", "lines read exactly"),
        variants=variants,
        command=command,
    )


def _params(gm: GraphModule) -> int:
    return sum(parameter.numel() for parameter in gm.parameters())


def _check_extra() -> None:
    missing = [name for name in ("matplotlib", "PIL", "onnxruntime") if not importlib.util.find_spec(name)]
    if missing:
        raise FxdecompError(f"the demo needs {', '.join(missing)}, not installed; install `fxdecomp[demo]`")
