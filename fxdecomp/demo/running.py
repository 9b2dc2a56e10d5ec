"""`run_demo`: the recogniser through the whole path, dense against compressed.

Tucker-2 at one share of the channels for the six inner convolutions, without training: once from the weights
alone, once fitted to 64 unlabelled lines. All three networks are exported and read the same fresh lines
through ONNX Runtime; the dense and the fitted one are timed against each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from fxdecomp.demo.judging import Reading, judge, onnx_reader
from fxdecomp.demo.lines import Split, render_lines
from fxdecomp.demo.recogniser import load_recogniser
from fxdecomp.export import BenchmarkReport, benchmark, to_onnx
from fxdecomp.files import write_json
from fxdecomp.pipeline import transform
from fxdecomp.policy import Policy, Rule
from fxdecomp.progress import Progress, silent
from fxdecomp.ranks import Ratio
from fxdecomp.reporting import Report, report
from fxdecomp.reporting.report import short
from fxdecomp.tracing import trace

SHARE = 0.42
"""Share of the channels that the demo keeps: about 3.7 times fewer multiply-accumulates."""

DEMO_POLICY = Policy(
    rules=[Rule("features.conv*", method="tucker2", rank=Ratio(SHARE, multiple_of=8))],
    exclude=["features.conv1"],
)
CALIBRATION_LINES = 64
_BATCH = 8
_STEPS = 8


@dataclass(frozen=True, slots=True, eq=False)
class DemoResult:
    """What the demo measured.

    Attributes:
        readings: How well `dense`, `weight-only` and `small` (calibrated) read, by name.
        sizes_bytes: Size of each ONNX file.
        params: Parameters of each network, all layers counted.
        timings: `dense` and `small` on one thread and on all.
        layers: What became of each Conv and Linear.
        folder: Where the files are.
    """

    readings: dict[str, Reading]
    sizes_bytes: dict[str, int]
    params: dict[str, int]
    timings: BenchmarkReport
    layers: Report
    folder: Path

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON data."""
        return {
            "readings": {name: reading.to_dict() for name, reading in self.readings.items()},
            "sizes_bytes": self.sizes_bytes,
            "params": self.params,
            "timings": self.timings.to_dict(),
            "report": self.layers.to_dict(),
        }

    def __str__(self) -> str:
        macs = dict.fromkeys(self.readings, self.layers.macs_after)
        macs["dense"] = self.layers.macs_before
        rows = [f"{'':12}{'exact lines':>12}{'errors':>8}{'MACs':>9}{'params':>9}{'file':>9}"]
        rows += [
            f"{name:12}{reading.exact:>12.1%}{reading.cer:>8.2%}{short(macs[name]):>9}"
            f"{short(self.params[name]):>9}{self.sizes_bytes[name] / 1e6:>6.1f} MB"
            for name, reading in self.readings.items()
        ]
        count = self.readings["dense"].count
        title = f"{count} fresh lines; errors are wrong characters; MACs of Conv and Linear, one line"
        return "\n\n".join(
            [
                str(self.layers),
                self.timings.kernel_table("small"),
                "\n".join([title, *rows]),
                str(self.timings),
                f"written to {self.folder}: {', '.join(f'{name}.onnx' for name in self.readings)}, demo.json",
            ]
        )


def run_demo(folder: Path, *, lines: int = 500, seed: int = 0, progress: Progress = silent) -> DemoResult:
    """Compress the recogniser and measure what it costs and brings.

    Args:
        folder: Made if it does not exist; the ONNX files and `demo.json` appear in it.
        lines: Number of fresh lines to judge by.
        seed: Seed of the lines.
        progress: Told of every finished step.

    Raises:
        FxdecompError: The extra `demo` is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fresh = render_lines(lines, Split.JUDGE, seed=seed)
    progress("demo", 1, _STEPS)
    dense = trace(load_recogniser(), fresh.images[:1])
    unlabelled = render_lines(CALIBRATION_LINES, Split.CALIBRATION, seed=seed).images
    small = transform(dense, DEMO_POLICY, calibration=torch.split(unlabelled, _BATCH))
    progress("demo", 2, _STEPS)
    networks = {"dense": dense, "weight-only": transform(dense, DEMO_POLICY), "small": small}
    progress("demo", 3, _STEPS)
    paths = {name: folder / f"{name}.onnx" for name in networks}
    exports = {name: to_onnx(gm, fresh.images[:1], paths[name]) for name, gm in networks.items()}
    progress("demo", 4, _STEPS)
    readings = {}
    for step, (name, path) in enumerate(paths.items(), start=5):
        readings[name] = judge(onnx_reader(path), fresh)
        progress("demo", step, _STEPS)
    timings = benchmark({name: paths[name] for name in ("dense", "small")}, threads=(1, 0))
    progress("demo", _STEPS, _STEPS)
    result = DemoResult(
        readings,
        {name: export.size_bytes for name, export in exports.items()},
        {name: _params(gm) for name, gm in networks.items()},
        timings,
        report(small),
        folder,
    )
    write_json(folder / "demo.json", result.to_dict())
    return result


def _params(gm: GraphModule) -> int:
    return sum(parameter.numel() for parameter in gm.parameters())
