"""Does the benchmark know that a model is as fast as itself? Its interval should hold 1.0 in 18 of 20 runs.

python -m benchmarks.self_ratio --runs 20 --rounds 30
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from torch import nn

import fxdecomp
from fxdecomp.export import benchmark, to_onnx


def network(channels: int) -> nn.Sequential:
    """Four convolutions, about 10 ms on one core."""
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--size", type=int, default=56)
    given = parser.parse_args()
    torch.manual_seed(0)
    example = torch.randn(1, 3, given.size, given.size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        to_onnx(fxdecomp.trace(network(given.channels), example), example, path)
        held = 0
        for run in range(given.runs):
            report = benchmark(
                {"a": path, "b": path}, threads=given.threads, rounds=given.rounds, profile=False
            )
            ratio = report.ratio("a", "b")
            held += ratio.low <= 1.0 <= ratio.high
            print(
                json.dumps({"run": run, "value": ratio.value, "low": ratio.low, "high": ratio.high}),
                flush=True,
            )
    print(
        json.dumps({"runs": given.runs, "hold_one": held, "rounds": given.rounds, "threads": given.threads})
    )


if __name__ == "__main__":
    main()
