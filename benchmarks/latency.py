"""Predicted against measured time of whole networks, and where a budget of Latency lands.

    python -m benchmarks.latency vgg16 resnet18 resnet50 mobilenet_w1 --share 0.5 --out latency.jsonl

Architectures from pytorchcv with drawn weights, batch 1, 224 x 224, one thread, ONNX Runtime's CPU provider.
Each network is compressed to the share; its first attempt is the prediction, before any repair. The outcome
is then exported for itself and timed against the dense network once more, in turn.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from pytorchcv.model_provider import get_model

import fxdecomp
from fxdecomp.export import benchmark, to_onnx


def measure(name: str, share: float, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 224, 224)
    gm = fxdecomp.trace(get_model(name).eval(), x)
    start = time.perf_counter()
    try:
        small = fxdecomp.transform(gm, fxdecomp.Policy(budget=fxdecomp.Latency(share)))
    except fxdecomp.PolicyError as error:
        return {"network": name, "share": share, "refused": str(error)}
    row = {"network": name, "share": share, "transform_s": time.perf_counter() - start}
    told = fxdecomp.report(small)
    record = told.record.to_dict()
    row |= {"notes": record["notes"], "latency": record["latency"], "replaced": len(told.applied)}
    if told.modified:
        with tempfile.TemporaryDirectory() as folder:
            paths = {"dense": Path(folder, "dense.onnx"), "small": Path(folder, "small.onnx")}
            to_onnx(gm, x, paths["dense"], dynamic_batch=False)
            to_onnx(small, x, paths["small"], dynamic_batch=False)
            ratio = benchmark(paths, threads=1, rounds=rounds, profile=False).ratio("dense", "small")
        row["landed"] = {"share": 1 / ratio.value, "low": 1 / ratio.high, "high": 1 / ratio.low}
    return row


def show(row: dict[str, Any]) -> str:
    head = f"{row['network']:18} Latency({row['share']})"
    if "refused" in row:
        return f"{head}  {row['refused']}"
    if "landed" not in row:
        return f"{head}  {row['notes'][0]}"
    first = row["latency"]["attempts"][0]
    miss = first["predicted_share"] / first["measured_share"] - 1
    landed = row["landed"]
    return (
        f"{head}  first attempt: predicted {first['predicted_share']:.3f}, measured "
        f"{first['measured_share']:.3f} ({miss:+.1%}); landed at {landed['share']:.3f} "
        f"[{landed['low']:.3f}, {landed['high']:.3f}] after {len(row['latency']['attempts'])} attempt(s), "
        f"{row['transform_s']:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="rows are added to it, one JSON line a network")
    options = parser.parse_args()
    for name in options.networks:
        row = measure(name, options.share, options.rounds)
        print(show(row), flush=True)
        if options.out:
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
