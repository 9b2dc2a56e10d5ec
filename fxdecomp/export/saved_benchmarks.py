"""What a saved benchmark must look like: its types are checked as it is read, for it comes from a file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_TIMING: Mapping[str, tuple[type, ...]] = {
    "model": (str,),
    "provider": (str,),
    "threads": (int,),
    "batch": (int,),
    "rounds_s": (list,),
    "median_s": (int, float, type(None)),
    "p95_s": (int, float, type(None)),
    "first_run_s": (int, float, type(None)),
    "load_s": (int, float, type(None)),
    "peak_bytes": (int, type(None)),
    "nodes": (dict,),
    "problem": (str,),
}
_KERNEL: Mapping[str, tuple[type, ...]] = {
    "name": (str,),
    "kind": (str,),
    "time_s": (int, float),
    "share": (int, float),
    "macs": (int,),
    "provider": (str,),
    "gflops": (int, float),
}


def check_benchmark(data: Mapping[str, Any]) -> None:
    """Look at the data of a `BenchmarkReport`.

    Raises:
        TypeError: A value has another type than `to_dict` gives it, or one that no measurement gives.
        AttributeError, KeyError: Something is no table, or lacks.
    """
    for key in ("machine", "settings", "kernels"):
        _expect(isinstance(data[key], dict), key, data[key])
    files = data["settings"].get("files", {})
    _expect(isinstance(files, dict), "files", files)
    for file in files.values():
        _expect(isinstance(file, dict) and type(file.get("bytes", 0)) is int, "files", file)
    for row in data["timings"]:
        _check(row, _TIMING)
        rounds = row["rounds_s"]
        _expect(all(_is_time(each) for each in rounds) and bool(rounds or row["problem"]), "rounds_s", rounds)
        _expect(all(type(each) is int for each in row["nodes"].values()), "nodes", row["nodes"])
    counts = {len(row["rounds_s"]) for row in data["timings"] if not row["problem"]}
    _expect(len(counts) < 2, "number of rounds", sorted(counts))
    for rows in data["kernels"].values():
        for row in rows:
            _check(row, _KERNEL)


def _check(row: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]]) -> None:
    for key, value in row.items():
        _expect(type(value) in kinds[key], key, value)
        _expect(not isinstance(value, float) or math.isfinite(value), key, value)


def _is_time(value: object) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf  # type: ignore[operator]  # a number by then


def _expect(holds: bool, name: str, value: object) -> None:
    if not holds:
        raise TypeError(f"{name} is {value!r}")
