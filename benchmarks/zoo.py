"""Sweep over the networks of pytorchcv: random weights, results to a JSON lines file.

    python -m benchmarks.zoo --out zoo.jsonl             # every family, and every name below 30 M parameters
    python -m benchmarks.zoo --out zoo.jsonl --onnx      # the same with ONNX parity
    python -m benchmarks.zoo --out benchmarks/zoo.jsonl --table docs/zoo.md

Each network runs in a process of its own with a time limit, so that a crash or a hang is a row. What a row
already tells is not checked again. Some names are the same network, weights and all: one of them is checked.
benchmarks/zoo.jsonl holds the sweep with ONNX: `--out benchmarks/zoo.jsonl --onnx` checks what it lacks.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import json
import multiprocessing as mp
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxdecomp
from benchmarks.network_checks import HALF, Row, check_network, to_json
from benchmarks.zoo_networks import (
    SMALL,
    TAME,
    build,
    constructors,
    count_parameters,
    family,
    fingerprint,
    is_chaotic,
    randomise,
    smallest_inputs,
)
from benchmarks.zoo_page import page


def check_one(
    name: str, pipe: Any, onnx: bool, known: dict[str, Any] | None, twins: dict[str, dict[str, Any]]
) -> None:
    """Check one network, or go on from its row, and send the row; runs in a process of its own.

    Args:
        name: The network.
        pipe: Takes the row.
        onnx: Whether it is exported too.
        known: Its row without ONNX, None where there is none.
        twins: Rows of networks that passed every check, by fingerprint.
    """
    torch.set_num_threads(1)
    constructor = constructors()[name]
    row = Row(**known) if known else Row(name, family(constructor))
    at = "construct"
    try:
        model = randomise(build(constructor))
        at = "inputs"
        inputs = smallest_inputs(name, model)
        assert isinstance(inputs, tuple)
        drawn_small = is_chaotic(model, inputs)
        if drawn_small:
            model = randomise(model, size=SMALL)
        at = "run"
        mark = fingerprint(model, inputs)
    except Exception as error:  # noqa: BLE001 - one network's failure is its row
        pipe.send(to_json(row) | {"failed_at": at, "error": f"{type(error).__name__}: {error}"[:600]})
        return
    if twin := twins.get(mark):
        pipe.send(twin | {"name": name, "family": row.family, "twin_of": twin["name"]})
        return
    row = check_network(replace(row, fingerprint=mark), model, inputs, onnx=onnx)
    if row.error.startswith("ParityError") and not drawn_small and not is_tame(model, inputs):
        tame = randomise(model, size=SMALL)
        again = check_network(replace(row, failed_at="", error=""), tame, inputs, onnx=True)
        row = replace(again, onnx=f"{again.onnx} with small BatchNorms") if again.onnx == "equal" else again
    pipe.send(to_json(row))


def is_tame(model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether neither the network nor its half-rank version makes roundings more than `TAME` times larger."""
    half = fxdecomp.transform(fxdecomp.trace(model, inputs), HALF)
    return not any(is_chaotic(each, inputs, TAME) for each in (model, half))


def warm_up() -> None:
    """Import the exporter and build its tables once, before the processes fork."""
    model, inputs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.zeros(1, 3, 8, 8)
    with tempfile.TemporaryDirectory() as folder:
        fxdecomp.export.to_onnx(fxdecomp.trace(model, inputs), inputs, Path(folder) / "warm.onnx")
    gc.collect()
    gc.freeze()


def sizes_of(names: dict[str, Callable[..., nn.Module]], cache: Path) -> dict[str, int]:
    """Parameters of every network; building all of them takes minutes, so the answer is kept in a file."""
    if cache.exists():
        return dict(json.loads(cache.read_text()))
    sizes = {name: count_parameters(constructor) for name, constructor in names.items()}
    cache.write_text(json.dumps(sizes))
    return sizes


def select(names: dict[str, Callable[..., nn.Module]], sizes: dict[str, int], max_params: int) -> list[str]:
    """The smallest of every family first, then every other below the limit by size, likely twins last."""
    first = smallest(names, sizes)
    rest = [n for n, size in sizes.items() if size < max_params and n not in first]
    ordered = first + sorted(rest, key=sizes.__getitem__)
    once = {(family(names[n]), sizes[n]): n for n in reversed(ordered)}.values()
    return sorted(ordered, key=lambda n: n not in once)


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
    firsts = [row for row in known.values() if not row["twin_of"] and (row["onnx"] or not onnx)]
    twins = {row["fingerprint"]: row for row in firsts}
    waiting = list(reversed(names))
    running: dict[Any, tuple[str, Any, float]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop()
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=check_one, args=(name, sender, onnx, known.get(name), twins))
            process.start()
            sender.close()
            running[receiver] = (name, process, time.monotonic())
        ready = set(wait(list(running), timeout=1.0))
        for receiver, (name, process, start) in list(running.items()):
            late = time.monotonic() - start > limit_s
            if receiver not in ready and not late:
                continue
            try:
                row = receiver.recv() if receiver in ready else _lost(name, f"took over {limit_s:g} s")
            except EOFError:
                process.join()
                row = _lost(name, f"the process ended with code {process.exitcode}")
            if row["fingerprint"] and not row["failed_at"]:
                twins.setdefault(row["fingerprint"], row)
            yield row
            process.kill()
            process.join()
            del running[receiver]


def _lost(name: str, why: str) -> dict[str, Any]:
    return to_json(Row(name, family(constructors()[name]), failed_at="process", error=why))


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
        options.table.write_text(page(rows))
        return
    done = {row["name"]: row for row in rows if not (options.retry_failed and row["failed_at"])}
    unknown = sorted(set(options.names or ()) - set(constructors()))
    if unknown:
        parser.error(f"the zoo has no network {unknown[0]!r}")
    sizes = sizes_of(constructors(), options.out.with_suffix(".sizes.json"))
    names = options.names or select(constructors(), sizes, int(options.max_params))
    known = {name: row for name, row in done.items() if not row["failed_at"]}
    finished = {name for name, row in done.items() if row["failed_at"] or row["onnx"] or not options.onnx}
    left = [name for name in names if options.names or name not in finished]
    print(f"{len(left)} of {len(names)} networks to run")
    if options.onnx:
        warm_up()
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
