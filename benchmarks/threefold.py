"""The demo's recogniser three times as fast on one thread: budgets, and fewer states in its LSTMs.

    python -m benchmarks.threefold --out DIR [--rungs 0.25:0.75 0.2:0.625] [--lines 1000] [--steps 120]
    python -m benchmarks.threefold --times DIR    # the files of earlier runs, all in turn

A rung is a budget of `MACs` and the share of the LSTMs' states that stays (1 for all), fitted to 64
unlabelled lines. With `--steps` it is then taught by the dense network on unlabelled lines of the same split.
All are judged on lines that nothing was fitted to; times are of one line, one thread, all files in turn.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

import fxdecomp
from fxdecomp import MACs, Policy, Rule
from fxdecomp.demo.judging import judge, onnx_reader
from fxdecomp.demo.lines import Split, render_lines
from fxdecomp.demo.recogniser import load_recogniser
from fxdecomp.demo.running import CALIBRATION_LINES
from fxdecomp.export import benchmark, to_onnx

RUNGS = ("0.25:1", "0.25:0.75", "0.25:0.625", "0.225:0.625", "0.2:0.625", "0.2:0.5")
_BATCH = 8
_TABLE = "rungs.json"


def policy_of(rung: str) -> Policy:
    """The policy that a rung's two numbers stand for."""
    share, width = map(float, rung.split(":"))
    rules = [Rule("*.lstm", width=width)] if width < 1 else []
    return Policy(rules=rules, budget=MACs(share), multiple_of=16)


class Table:
    """What was measured, kept beside the files; an earlier run's rows in the folder stay."""

    def __init__(self, folder: Path, lines: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._judged = folder, render_lines(lines, Split.JUDGE)
        self.example = self._judged.images[:1]
        known = folder / _TABLE
        self.rows: dict[str, dict[str, Any]] = json.loads(known.read_text()) if known.exists() else {}

    def add(self, name: str, network: GraphModule, taken_s: float = 0.0, **options: Any) -> None:
        """Write a network, read with the file, and print the row."""
        path = self._folder / f"{name}.onnx"
        to_onnx(network, self.example, path, **options)
        reading = judge(onnx_reader(path, threads=1), self._judged)
        told = fxdecomp.report(network)
        row = {"exact": reading.exact, "lines": reading.count, "macs": told.macs_after, "taken_s": taken_s}
        self.rows[name] = row
        (self._folder / _TABLE).write_text(json.dumps(self.rows, indent=1))
        lost = 100 * (self.rows["dense"]["exact"] - reading.exact)
        share = told.macs_after / self.rows["dense"]["macs"]
        print(
            f"{name:28} {reading.exact:.1%} read, {lost:+.1f} points lost, {share:.3f} of the MACs, "
            f"{taken_s:.0f} s",
            flush=True,
        )


def climb(rungs: list[str], folder: Path, options: argparse.Namespace) -> None:
    """Make all rungs' networks."""
    table = Table(folder, options.lines)
    unlabelled = render_lines(max(options.unlabelled, CALIBRATION_LINES), Split.CALIBRATION).images
    data = list(torch.split(unlabelled[:CALIBRATION_LINES], _BATCH))
    lessons = list(torch.split(unlabelled[: options.unlabelled], _BATCH))
    dense = fxdecomp.trace(load_recogniser(), table.example)
    if "dense" not in table.rows:
        table.add("dense", dense)
    for rung in rungs:
        name = f"macs {rung.replace(':', ', states ')}"
        start = time.perf_counter()
        small = fxdecomp.transform(dense, policy_of(rung), calibration=data)
        table.add(name, small, time.perf_counter() - start)
        if options.steps:
            start = time.perf_counter()
            small = fxdecomp.recover(
                small, dense, lessons, block_steps=options.block_steps, steps=options.steps
            )
            table.add(f"{name}, recovered", small, time.perf_counter() - start)
        if options.int8:
            table.add(f"{name}, int8", small, quantize="int8", calibration=data)


def time_files(folder: Path, rounds: int) -> None:
    """Print each file's time against the dense network's."""
    rows = json.loads((folder / _TABLE).read_text())
    paths = {name: folder / f"{name}.onnx" for name in rows}
    timed = benchmark(paths, threads=1, rounds=rounds, profile=False)
    for name, row in rows.items():
        lost = 100 * (rows["dense"]["exact"] - row["exact"])
        print(
            f"{name:28} {timed.median_s[name] * 1e3:6.2f} ms, {timed.ratio('dense', name)}, "
            f"{row['exact']:.1%} of {row['lines']} read, {lost:+.1f} points lost"
        )


def main() -> None:
    """Make the files, or time those that are there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="where the files go")
    parser.add_argument("--times", type=Path, help="time the files of a folder")
    parser.add_argument("--rungs", nargs="+", default=RUNGS, help="budget:states")
    parser.add_argument("--lines", type=int, default=1000)
    parser.add_argument("--unlabelled", type=int, default=256, help="lines that recovery learns from")
    parser.add_argument("--block-steps", type=int, default=60)
    parser.add_argument("--steps", type=int, default=0, help="of recovery")
    parser.add_argument("--int8", action="store_true", help="in int8 as well")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if (options.out is None) == (options.times is None):
        parser.error("give one of --out and --times")
    if options.out is not None:
        climb(list(options.rungs), options.out, options)
    time_files(options.out or options.times, options.rounds)


if __name__ == "__main__":
    main()
