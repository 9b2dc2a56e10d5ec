"""Sweep over the networks of pytorchcv: random weights, results to a JSON lines file.

    python -m benchmarks.zoo --out zoo.jsonl             # every family, and every name below 30 M parameters
    python -m benchmarks.zoo --out zoo.jsonl --onnx      # the smallest of every family with ONNX parity too
    python -m benchmarks.zoo --out zoo.jsonl --table docs/zoo.md

Each network runs in a process of its own with a time limit, so that a crash or a hang is a row. What a row
already tells is not checked again.
"""

from __future__ import annotations

import argparse
import inspect
import json
import multiprocessing as mp
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.network_checks import (
    TOLERANCE,
    TOLERANCE_DOUBLE,
    Row,
    check_network,
    to_json,
)
from benchmarks.zoo_networks import (
    CHAOTIC,
    TAME,
    build,
    constructors,
    count_parameters,
    family,
    is_chaotic,
    randomise,
    smallest_inputs,
)

CAUSES: dict[str, str] = {
    "linknet": "pytorchcv: its constructor fails, whatever the caller does",
    "superpointnet": "PyTorch: the network picks key points by value, which no tracer can follow",
    "ntsnet_cub": "PyTorch: regions are chosen in NumPy inside the network, which no tracer can follow",
    "centernet_resnet18_voc": "the network: two key points with equal scores, which come in either order",
    "revnet": "PyTorch: an `autograd.Function` of its own, which torch.export cannot trace",
}
"""Why a network fails, by name or family, where the cause is known."""


def check_one(name: str, pipe: Any, onnx: bool, known: dict[str, Any] | None) -> None:
    """Check one network, or go on from its row, and send the row; runs in a process of its own."""
    torch.set_num_threads(1)
    constructor = constructors()[name]
    row = Row(**known) if known else Row(name, family(constructor))
    at = "construct"
    try:
        model = randomise(build(constructor))
        at = "inputs"
        inputs = smallest_inputs(name, model)
        assert isinstance(inputs, tuple)
        if is_chaotic(model, inputs, TAME if onnx else CHAOTIC):
            model = randomise(model, size=0.1)
    except Exception as error:  # noqa: BLE001 - one network's failure is its row
        pipe.send(to_json(row) | {"failed_at": at, "error": f"{type(error).__name__}: {error}"[:600]})
        return
    pipe.send(to_json(check_network(row, model, inputs, onnx=onnx)))


def sizes_of(names: dict[str, Callable[..., nn.Module]], cache: Path) -> dict[str, int]:
    """Parameters of every network; building all of them takes minutes, so the answer is kept in a file."""
    if cache.exists():
        return dict(json.loads(cache.read_text()))
    sizes = {name: count_parameters(constructor) for name, constructor in names.items()}
    cache.write_text(json.dumps(sizes))
    return sizes


def select(names: dict[str, Callable[..., nn.Module]], sizes: dict[str, int], max_params: int) -> list[str]:
    """The smallest of every family first, then every other name below the limit, by size."""
    first = smallest(names, sizes)
    rest = [n for n, size in sizes.items() if size < max_params and n not in first]
    return first + sorted(rest, key=sizes.__getitem__)


def smallest(names: dict[str, Callable[..., nn.Module]], sizes: dict[str, int]) -> list[str]:
    """The smallest network of every family, by size."""
    families: dict[str, list[str]] = defaultdict(list)
    for name, constructor in names.items():
        families[family(constructor)].append(name)
    first = [min(members, key=lambda n: (sizes[n] < 0, sizes[n])) for members in families.values()]
    return sorted(first, key=sizes.__getitem__)


def sweep(
    names: list[str], known: dict[str, dict[str, Any]], *, onnx: bool, limit_s: float, jobs: int
) -> Iterator[dict[str, Any]]:
    """The rows of all networks as they come, `jobs` networks at a time; known rows are gone on from."""
    context = mp.get_context("fork")
    waiting = list(reversed(names))
    running: dict[Any, tuple[str, Any, float]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop()
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=check_one, args=(name, sender, onnx, known.get(name)))
            process.start()
            sender.close()
            running[receiver] = (name, process, time.monotonic())
        ready = set(wait(list(running), timeout=1.0))
        for receiver, (name, process, start) in list(running.items()):
            late = time.monotonic() - start > limit_s
            if receiver not in ready and not late:
                continue
            try:
                yield receiver.recv() if receiver in ready else _lost(name, f"took over {limit_s:g} s")
            except EOFError:
                process.join()
                yield _lost(name, f"the process ended with code {process.exitcode}")
            process.kill()
            process.join()
            del running[receiver]


def _lost(name: str, why: str) -> dict[str, Any]:
    return to_json(Row(name, family(constructors()[name]), failed_at="process", error=why))


def table(rows: list[dict[str, Any]]) -> str:
    """The results as a Markdown page."""
    known = constructors()
    failed = [row for row in rows if row["failed_at"]]
    passed = len(rows) - len(failed)
    exact = Counter(row["full_rank_type"] for row in rows if row["full_rank_error"] is not None)
    tracers = Counter(row["tracer"] for row in rows if row["tracer"])
    reasons: Counter[str] = Counter()
    for row in rows:
        reasons.update(row["skipped"])
    onnx = Counter(row["onnx"].partition(":")[0] for row in rows if row["onnx"])
    lines = [
        "# The zoo: pytorchcv",
        "",
        "Written by `python -m benchmarks.zoo --out zoo.jsonl --table docs/zoo.md`; do not edit by hand.",
        "Random weights, drawn BatchNorm statistics, the smallest input that each network accepts, Tucker-2.",
        "Pose networks give heat maps, sound networks take spectra, by pytorchcv's options: no tracer can",
        "follow key points that are decoded by value, into Python integers. BatchNorms are drawn smaller",
        "where the network overflows or makes roundings a million times larger (a thousand residual layers);",
        "for ONNX, whose roundings differ from PyTorch's in every layer, ten times.",
        "",
        f"- The zoo: {len(known)} names in {len(set(map(family, known.values())))} families.",
        f"- Swept so far: {len(rows)} networks from {len({row['family'] for row in rows})} families; "
        f"**{passed} pass ({passed / max(len(rows), 1):.1%})**.",
        f"- Tracers: {', '.join(f'{kind} {count}' for kind, count in tracers.items())}.",
        f"- Full rank: largest difference over largest output at most {TOLERANCE:g} with float32 factors "
        f"({exact['float32']} networks), or {TOLERANCE_DOUBLE:g} with float64 factors where torch.export "
        f"fixed the type or the network amplifies float32 rounding ({exact['float64']} networks).",
        "- Half rank: every layer listed once, MACs told equal MACs counted in the running graph, and lower.",
        f"- Layers replaced at half rank: {sum(row['applied'] for row in rows):,} of "
        f"{sum(row['layers'] for row in rows):,}; left alone: "
        + ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
        + ".",
        f"- BatchNorms folded: {sum(row['folded'] for row in rows):,}; left in the graph: "
        f"{sum(row['unfolded'] for row in rows):,}.",
    ]
    if onnx:
        lines.append(
            "- ONNX, the smallest of every family, whole and at half rank, compared with PyTorch: "
            + ", ".join(f"{kind} {count}" for kind, count in onnx.most_common())
            + "."
        )
    lines += ["", "## What does not pass", ""]
    if failed:
        lines += ["| network | family | at | message | cause |", "|---|---|---|---|---|"]
        for row in failed:
            cause = CAUSES.get(row["name"], CAUSES.get(row["family"], "not known yet"))
            message = " ".join(row["error"].split()).replace("|", "/")[:160]
            lines.append(f"| {row['name']} | {row['family']} | {row['failed_at']} | {message} | {cause} |")
    else:
        lines.append("Nothing.")
    unexported = [row for row in rows if row["onnx"] not in ("", "equal")]
    if unexported:
        lines += ["", "## What does not export", "", "| network | message |", "|---|---|"]
        for row in unexported:
            message = " ".join(row["onnx"].split()).replace("|", "/")
            lines.append(f"| {row['name']} | {message[:200]} |")
    lines += [
        "",
        "## Every network",
        "",
        "| network | params | input | tracer | layers | replaced | full rank | MACs at half rank | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["family"], row["params"])):
        error = "" if row["full_rank_error"] is None else f"{row['full_rank_error']:.0e}"
        half = "" if row["half_macs"] is None else f"{row['half_macs']:.2f}"
        lines.append(
            f"| {row['name']} | {row['params'] / 1e6:.2f} M | {row['inputs']} | {row['tracer']} | "
            f"{row['layers']} | {row['applied']} | {error} | {half} | {row['seconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON lines file, the latest of each network."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines() if line]
    return list({row["name"]: row for row in rows}.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=inspect.getdoc(sys.modules[__name__]))
    parser.add_argument("--out", type=Path, required=True, help="JSON lines file; finished networks are kept")
    parser.add_argument("--names", nargs="*", help="these networks only")
    parser.add_argument("--max-params", type=float, default=30e6)
    parser.add_argument("--limit-s", type=float, default=600.0, help="seconds for one network")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    parser.add_argument("--onnx", action="store_true", help="also export both networks and compare")
    parser.add_argument("--retry-failed", action="store_true")
    parser.add_argument("--table", type=Path, help="write the Markdown page and run nothing")
    options = parser.parse_args()
    rows = read_rows(options.out)
    if options.table:
        options.table.write_text(table(rows))
        return
    done = {row["name"]: row for row in rows if not (options.retry_failed and row["failed_at"])}
    unknown = sorted(set(options.names or ()) - set(constructors()))
    if unknown:
        parser.error(f"the zoo has no network {unknown[0]!r}")
    sizes = sizes_of(constructors(), options.out.with_suffix(".sizes.json"))
    if options.onnx:
        chosen = smallest(constructors(), sizes)
    else:
        chosen = select(constructors(), sizes, int(options.max_params))
    names = options.names or chosen
    passed = {name: row for name, row in done.items() if not row["failed_at"]}
    known = passed if options.onnx else {}
    finished = {name for name, row in done.items() if row["failed_at"] or row["onnx"] or not options.onnx}
    left = [name for name in names if options.names or name not in finished]
    print(f"{len(left)} of {len(names)} networks to run")
    with options.out.open("a") as file:
        coming = sweep(left, known, onnx=options.onnx, limit_s=options.limit_s, jobs=options.jobs)
        for row in coming:
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(
                f"{row['name']:40s} {row['seconds']:7.1f} s  {row['failed_at'] or 'ok'} {row['error'][:120]}"
            )


if __name__ == "__main__":
    main()
