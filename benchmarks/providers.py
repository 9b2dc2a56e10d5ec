"""One network on every execution provider that is installed: dense, planned for each, and in int8.

    python -m benchmarks.providers recogniser resnet18 --share 0.5 --out build/providers

`make openvino` calls it where onnxruntime-openvino stands beside the CPU's provider. The recogniser has its
own weights, ResNet-18 (pytorchcv) drawn ones; both are planned by their weights alone, so that only speed
is shown. All files of a network are timed in turn on each provider, one thread. What a provider cannot run
is a row that says so.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.fx import GraphModule

import fxdecomp
from benchmarks.timed_networks import NETWORKS
from benchmarks.torch_times import COMPILED, EAGER, torch_report
from fxdecomp.errors import BenchmarkError
from fxdecomp.export import BenchmarkReport, Int8, benchmark, to_onnx
from fxdecomp.export.sessions import available_providers
from fxdecomp.latency.chain_times import ChainTimes
from fxdecomp.latency.place import Place
from fxdecomp.latency.quickest_options import timed_at
from fxdecomp.providers import PROVIDERS, described


def present() -> list[str]:
    """The providers that are described and installed, the CPU's own first."""
    offered = available_providers()
    return [each.name for each in PROVIDERS if each.name in offered]


def planned(gm: GraphModule, share: float, provider: str) -> GraphModule | str:
    """The network that a budget of time makes for a provider, or why there is none."""
    policy = fxdecomp.Policy(budget=fxdecomp.Latency(share, provider=provider), made_up=False)
    try:
        return fxdecomp.transform(gm, policy)
    except (fxdecomp.PolicyError, BenchmarkError) as error:
        return str(error)


def table(report: BenchmarkReport, files: list[str], providers: list[str]) -> str:
    """A row a file, a column a provider: milliseconds, and how many times faster than dense."""
    head = ["file", *(described(provider).short for provider in providers)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in files:
        cells = []
        for provider in providers:
            rows = [each for each in report.timings if (each.model, each.provider) == (name, provider)]
            if not rows or rows[0].problem:
                cells.append(rows[0].problem if rows else "")
                continue
            (row,) = rows
            cell = f"{row.median_s * 1e3:.2f} ms"
            if name != "dense":
                cell += f", {report.ratio('dense', name, provider=provider)}"
            cells.append(cell)
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def liked_multiples(provider: str) -> str:
    """What ranks should be multiples of, by the type that is computed in, as measured now."""
    found = []
    for precision in ("float32", "float16", "int8"):
        times = ChainTimes(Place(provider, precision=precision))
        found.append(f"{precision} {times.good_multiple()}")
    return f"{described(provider).short}: ranks in multiples of {', '.join(found)}"


def options_of(provider: str) -> str:
    """The options that were found quickest."""
    options = timed_at(fxdecomp.Latency(1.0, provider))["provider_options"][provider]
    return f"{described(provider).short}: options {options or 'as they are'}"


def measure(name: str, share: float, folder: Path, rounds: int) -> dict[str, Any]:
    network, inputs = NETWORKS[name](1)
    gm = fxdecomp.trace(network, inputs)
    folder.mkdir(parents=True, exist_ok=True)
    providers = present()
    made: dict[str, GraphModule] = {"dense": gm}
    row: dict[str, Any] = {"network": name, "share": share}
    for provider in providers:
        found = planned(gm, share, provider)
        short = described(provider).short
        if isinstance(found, str):
            row[short] = {"refused": found}
            print(f"{name}: planned for {short}: {found}", flush=True)
            continue
        told = fxdecomp.report(found)
        methods = sorted({each.method for each in told.applied})
        record = told.record.to_dict()
        row[short] = {"notes": record["notes"], "latency": record["latency"], "methods": methods}
        print(
            f"{name}: planned for {short}: {', '.join(methods)}; {'; '.join(told.record.notes)}", flush=True
        )
        made[f"planned for {short}"] = found
    paths = {}
    for label, each in made.items():
        for suffix, precision in (("", None), (", int8", Int8(recurrent=False, max_error=100))):
            paths[label + suffix] = folder / f"{name}-{label}{suffix}.onnx".replace(" ", "-").replace(",", "")
            batches = None if precision is None else [inputs, inputs]
            to_onnx(
                each,
                inputs,
                paths[label + suffix],
                dynamic_batch=False,
                quantize=precision,
                calibration=batches,
            )
    report = benchmark(paths, providers=providers, rounds=rounds)
    eager = torch_report(made, inputs, rounds=rounds)
    report = replace(report, timings=(*report.timings, *eager.timings))
    print(f"\n{name}, {report.machine['processor']}, one thread\n")
    print(table(report, list(paths), [*providers, EAGER, COMPILED]), "\n")
    print(report.kernel_table("dense"), "\n", flush=True)
    return row | {"benchmark": report.to_dict()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="+", choices=list(NETWORKS))
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("build/providers"))
    given = parser.parse_args()
    for provider in present():
        print(options_of(provider), liked_multiples(provider), sep="\n", flush=True)
    rows = [measure(name, given.share, given.out, given.rounds) for name in given.networks]
    (given.out / "providers.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
