"""The page of measurements on a GPU, in one command of under 20 minutes.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --provider cpu --network resnet18 --precision fp32 --batch 1 --out build/gpu.md

Six networks on TensorRT and CUDA, in fp16, fp32 and int8, at batch 1, 8 and 32: dense against what
`Latency(0.5)` and `Latency(0.35)` make of it, in turn, with intervals; what was planned, and what it was
told; kernel tables; and the same networks in PyTorch, eager and compiled. Networks are planned at the
largest batch by their weights alone. What is most asked for comes first; when the time is up, the page
names what was not reached. Where none of the providers is there, it prints what it would do, and writes
nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.fx import GraphModule

import fxdecomp
from benchmarks.timed_networks import NETWORKS, Inputs
from benchmarks.torch_times import COMPILED, EAGER, torch_report
from fxdecomp.errors import FxdecompError, first_line
from fxdecomp.export import BenchmarkReport, Fp16, Int8, benchmark, to_onnx
from fxdecomp.export.machine import machine
from fxdecomp.export.sessions import available_providers
from fxdecomp.files import write_text
from fxdecomp.latency.quickest_options import timed_at
from fxdecomp.providers import CUDA, TENSORRT, described, provider_of

SHARES = (0.5, 0.35)
PRECISIONS = ("fp16", "fp32", "int8")
BATCHES = (1, 8, 32)


@dataclass(frozen=True, slots=True)
class Step:
    """One network on one provider in one precision."""

    network: str
    provider: str
    precision: str

    def __str__(self) -> str:
        return f"{self.network} on {described(self.provider).short} in {self.precision}"

    @property
    def own_fp16(self) -> dict[str, str]:
        """The provider's option for half precision; where there is none, the file is in half precision."""
        rounding = described(self.provider).rounding
        found = {name: values[0] for name, values in rounding.items() if "fp16" in name}
        return found if self.precision == "fp16" else {}


@dataclass(slots=True)
class Made:
    """What came of a step."""

    step: Step
    told: dict[str, str] = field(default_factory=dict)
    report: BenchmarkReport | None = None
    problem: str = ""


def carry_out(step: Step, batches: Sequence[int], rounds: int, folder: Path) -> Made:
    """Plan, write and time."""
    made = Made(step)
    network, inputs = NETWORKS[step.network](max(batches))
    gm = fxdecomp.trace(network, inputs)
    networks: dict[str, GraphModule] = {"dense": gm}
    study = fxdecomp.study(gm)
    for share in SHARES:
        name = f"Latency({share})"
        budget = fxdecomp.Latency(share, step.provider, options=step.own_fp16 or None)
        try:
            small = fxdecomp.transform(gm, fxdecomp.Policy(budget=budget, made_up=False), calibration=study)
        except FxdecompError as error:
            made.told[name] = first_line(error)
            continue
        told = fxdecomp.report(small)
        methods = ", ".join(sorted({each.method for each in told.applied})) or "no layer"
        made.told[name] = f"{methods}: {'; '.join(told.record.notes)}"
        networks[name] = small
    try:
        paths = {
            name: _write(each, inputs, step, folder / f"{i}.onnx")
            for i, (name, each) in enumerate(networks.items())
        }
        where = timed_at(fxdecomp.Latency(1.0, step.provider, options=step.own_fp16 or None))
        made.report = benchmark(paths, **where, batch_sizes=batches, rounds=rounds)
    except FxdecompError as error:
        made.problem = first_line(error)
    return made


def _write(gm: GraphModule, inputs: Inputs, step: Step, path: Path) -> Path:
    precision: Int8 | Fp16 | None = None
    if step.precision == "int8":
        precision = Int8(recurrent=False, max_error=100)
    elif step.precision == "fp16" and not step.own_fp16:
        precision = Fp16(max_error=100)
    few = tuple(value[:2] for value in inputs)
    to_onnx(gm, few, path, quantize=precision, calibration=[few, few])
    return path


def page(made: Sequence[Made], left: Sequence[Step], torch_rows: Mapping[str, BenchmarkReport]) -> str:
    """The page, in Markdown."""
    lines = ["# On a GPU", "", f"Made by `python -m benchmarks.gpu` on {_where()}.", ""]
    for network in dict.fromkeys(each.step.network for each in made):
        rows = [each for each in made if each.step.network == network]
        columns = ["provider", "precision", "batch", "dense ms", *(f"Latency({share})" for share in SHARES)]
        lines += [f"## {network}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for each in rows:
            lines += _rows(each)
        if network in torch_rows:
            lines += ["", "```", str(torch_rows[network]), "```"]
        for each in rows:
            lines += ["", f"{each.step}:", *(f"- {name}: {told}" for name, told in each.told.items())]
            if each.report is not None and each.report.kernels:
                lines += ["", "```", *(each.report.kernel_table(name) for name in each.report.kernels), "```"]
        lines += [""]
    if left:
        lines += ["## Not reached in the time", "", *(f"- {step}" for step in left), ""]
    return "\n".join(lines)


def _rows(made: Made) -> list[str]:
    if made.report is None:
        return [f"| {described(made.step.provider).short} | {made.step.precision} | | {made.problem} | | |"]
    lines = []
    for dense in (row for row in made.report.timings if row.model == "dense"):
        cells = [described(dense.provider).short, made.step.precision, str(dense.batch)]
        cells.append(dense.problem or f"{dense.median_s * 1e3:.3f}")
        for share in SHARES:
            try:
                cells.append(str(made.report.ratio("dense", f"Latency({share})", batch=dense.batch)))
            except FxdecompError:
                cells.append("")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _where() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else machine()["processor"]
    versions = ", ".join(f"{name} {version}" for name, version in machine()["versions"].items())
    return f"{device}, {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--provider", action="append", type=provider_of)
    parser.add_argument("--network", action="append", choices=list(NETWORKS))
    parser.add_argument("--precision", action="append", choices=PRECISIONS)
    parser.add_argument("--batch", action="append", type=int)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=18, help="after which no step begins")
    parser.add_argument("--out", type=Path, default=Path("docs/gpu.md"))
    given = parser.parse_args()
    wanted = given.provider or [TENSORRT.name, CUDA.name]
    batches = given.batch or BATCHES
    steps = [
        Step(network, provider, precision)
        for precision in given.precision or PRECISIONS
        for network in given.network or NETWORKS
        for provider in wanted
    ]
    offered = available_providers()
    there = [step for step in steps if step.provider in offered]
    if not there:
        print(f"no {' or '.join(wanted)} here, only {', '.join(offered)}. With one it would")
        for number, step in enumerate(steps, 1):
            print(f"{number:3}. plan {step} for {SHARES}, and time it against dense at batch {batches}")
        print(f"and time {EAGER} and {COMPILED}; all into {given.out}, for {given.minutes:g} minutes at most")
        return
    start, made, timed = time.monotonic(), list[Made](), dict[str, BenchmarkReport]()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for step in there:
        if time.monotonic() - start > 60 * given.minutes:
            break
        print(f"{time.monotonic() - start:6.0f} s  {step}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            made.append(carry_out(step, batches, given.rounds, Path(folder)))
        if step.network not in timed:
            network, inputs = NETWORKS[step.network](max(batches))
            timed[step.network] = torch_report({"dense": network}, inputs, device=device, rounds=given.rounds)
        write_text(given.out, page(made, there[len(made) :], timed))


if __name__ == "__main__":
    main()
