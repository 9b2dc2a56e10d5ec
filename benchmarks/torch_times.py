"""PyTorch itself as a timer: networks in turn, eager and through `torch.compile`, as rows of a benchmark.

    python -m benchmarks.torch_times resnet18 --share 0.5

What does not compile here is a row that says why.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import fxdecomp
from benchmarks.timed_networks import NETWORKS
from fxdecomp.errors import first_line
from fxdecomp.export import BenchmarkReport, Timing
from fxdecomp.export.loading import Runner
from fxdecomp.export.machine import machine

EAGER, COMPILED = "torch eager", "torch.compile"


def torch_report(
    networks: Mapping[str, nn.Module], inputs: Sequence[Tensor], *, device: str = "cpu", rounds: int = 15
) -> BenchmarkReport:
    """Time networks on one thread, or on a GPU."""
    torch.set_num_threads(1)
    values = [value.to(device) for value in inputs]
    runners: list[Runner] = []
    rows: list[Timing] = []
    for how in (EAGER, COMPILED):
        for name, network in networks.items():
            model = network.to(device).eval()
            try:
                run = _run_of(torch.compile(model, dynamic=False) if how == COMPILED else model, values)
                run()
            except Exception as error:  # noqa: BLE001 - whatever a compiler raises is a row
                rows.append(
                    Timing(name, how, 1, len(inputs[0]), problem=f"does not compile: {first_line(error)}")
                )
                continue
            runners.append(Runner(f"{how}\n{name}", len(inputs[0]), run, 0.0, 0.0))
    for runner in runners:
        runner.warm_up()
    for index in range(rounds):
        for runner in runners if index % 2 == 0 else reversed(runners):
            runner.visit()
    rows += map(_row, runners)
    return BenchmarkReport(tuple(rows), machine=machine())


def _run_of(model: Callable[..., Any], values: Sequence[Tensor]) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            found = model(*values)
        if values[0].is_cuda:
            torch.cuda.synchronize()
        return found

    return run


def _row(runner: Runner) -> Timing:
    how, _, name = runner.model.partition("\n")
    rounds, runs = tuple(runner.rounds_s), runner.runs_s
    p95_s = statistics.quantiles(runs, n=20)[-1]
    return Timing(name, how, 1, runner.batch, rounds, statistics.median(runs), p95_s)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", choices=list(NETWORKS))
    parser.add_argument("--share", type=float, default=0.5, help="multiply-accumulates that are left")
    parser.add_argument("--batch", type=int, default=1)
    given = parser.parse_args()
    network, inputs = NETWORKS[given.network](given.batch)
    gm = fxdecomp.trace(network, inputs)
    small = fxdecomp.transform(gm, fxdecomp.Policy(budget=fxdecomp.MACs(given.share), made_up=False))
    print(torch_report({"dense": gm, "small": small}, inputs))


if __name__ == "__main__":
    main()
