"""The solvers against TensorLy's and NumPy's: time and error, both sides in one run, interleaved.

    python -m benchmarks.solvers cp --case random-512-128  # CP; or structured-384-96, recogniser-256-64, ...
    python -m benchmarks.solvers vgg16      # Tucker-2 at a third of the channels, SVD of the Linear layers
    python -m benchmarks.solvers memory     # peak memory, each case in a process of its own
    python -m benchmarks.solvers executors  # the weights of layers side by side, on threads and processes
    python -m benchmarks.solvers budgets    # candidates fitted to inputs, layers one by one and side by side

TensorLy's `einsum` setting takes part where `opt_einsum` is installed (its plugin needs it); it is off for
fxdecomp's side, whose users need not have it. Rows are appended to --out as they are done.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tensorly as tl
import torch
from tensorly import plugins, tenalg
from tensorly.decomposition import parafac, randomised_parafac
from torch import Tensor

from benchmarks.solver_layers import bench_executors, bench_memory, bench_side_by_side, bench_vgg16
from benchmarks.solver_sides import Save, ours, relative_error, timed
from fxdecomp.decompositions import method_named
from fxdecomp.demo.recogniser import load_recogniser
from fxdecomp.export.machine import machine

OTHERS = {
    "vgg16": bench_vgg16,
    "memory": bench_memory,
    "executors": bench_executors,
    "budgets": bench_side_by_side,
}
"""What is measured besides CP."""

warnings.filterwarnings("ignore", message="Trying to compute SVD with n_eigenvecs")
warnings.filterwarnings("ignore", message=".*unclosed.*")

CASES = ("random-256-64", "recogniser-256-64", "random-512-128", "random-512-256")
STRUCTURED = ("structured-256-64", "structured-256-128", "structured-384-96", "structured-512-256")
SETTINGS = (("numpy", "core"), ("pytorch", "core"), ("numpy", "einsum"), ("pytorch", "einsum"))
LADDER = (3e-3, 2e-3, 1e-3, 5e-4, 2e-4, 1e-4, 5e-5)
VARIANTS: tuple[dict[str, Any], ...] = (
    {"init": "random"},
    {"init": "svd"},
    {"init": "random", "linesearch": True},
    {"init": "random", "n_samples": 8},  # randomised_parafac, this many times the rank
)


def kernel(case: str) -> Tensor:
    """A random kernel, one of 40 random terms and a tenth of noise, or the recogniser's largest."""
    kind, channels, _ = case.split("-")
    if kind == "recogniser":
        return load_recogniser().features.get_submodule("conv6").get_parameter("weight").detach()
    n, generator = int(channels), torch.Generator().manual_seed(0)
    noise = torch.randn(n, n, 3, 3, generator=generator)
    if kind == "random":
        return noise
    factors = [torch.randn(size, 40, generator=generator) for size in (n, n, 3, 3)]
    terms: Tensor = torch.einsum("tr,sr,yr,xr->tsyx", *factors)
    known: Tensor = terms / torch.linalg.vector_norm(terms) + 0.1 * noise / torch.linalg.vector_norm(noise)
    return known


@contextmanager
def tensorly_as(backend: str, algebra: str) -> Iterator[None]:
    """TensorLy in one of its settings."""
    with tl.backend_context(backend):
        tenalg.set_backend(algebra)
        if algebra == "einsum":
            plugins.use_opt_einsum()
        yield
        if algebra == "einsum":
            plugins.use_default_einsum()
        tenalg.set_backend("core")


def theirs(weight: Tensor, rank: int, iterations: int) -> tuple[float, float]:
    """Seconds and error of `parafac` as it comes: NumPy, init="svd", tol=1e-8, by default 100 iterations."""
    array = weight.numpy()
    seconds, found = timed(lambda: parafac(array, rank, n_iter_max=iterations, init="svd", random_state=0))
    return seconds, relative_error(weight, torch.from_numpy(tl.cp_to_tensor(found)))


def until(
    weight: Tensor,
    rank: int,
    setting: tuple[str, str],
    options: dict[str, Any],
    target: float,
    limit_s: float,
) -> dict[str, Any]:
    """One setting of TensorLy's until its error is no more than `target`, or its time is up."""
    backend, algebra = setting
    array = weight.numpy() if backend == "numpy" else weight
    started, errors, times = 0.0, [math.inf], [0.0]

    def seen(_: object, error: Any = math.inf) -> bool:
        nonlocal started
        now = time.perf_counter()
        if (
            len(times) == 1 and not started
        ):  # the call before the first iteration; its own cost is not counted
            started = now
            times[0] = now - begun
            return False
        errors.append(float(error))
        times.append(now - started + times[0])
        return errors[-1] <= target or times[-1] > limit_s

    with tensorly_as(backend, algebra):
        begun = time.perf_counter()
        fit = randomised_parafac if "n_samples" in options else parafac
        try:
            fit(array, rank, n_iter_max=100_000, tol=-1.0, random_state=0, callback=seen, **options)
        except Exception as error:  # noqa: BLE001 - what fails is a result here
            return {"setting": f"{backend} {algebra} {options}", "failed": repr(error)[:80]}
    return {
        "setting": f"{backend} {algebra} {options}",
        "reached": errors[-1] <= target,
        "seconds": times[-1],
        "iterations": len(errors) - 1,
        "error": errors[-1],
        "error_after_100": errors[100] if len(errors) > 100 else None,
    }


def at_error(weight: Tensor, rank: int, error: float) -> dict[str, Any]:
    """Ours with the loosest tolerance whose error is no more than TensorLy's."""
    for tolerance in LADDER:
        method = replace(method_named("cp"), tolerance=tolerance)  # type: ignore[type-var]
        runs = [ours(method, weight, (rank,)) for _ in range(3)]
        if runs[0][1] <= error:
            seconds = statistics.median(run[0] for run in runs)
            return {"tolerance": tolerance, "at_their_error_s": seconds, "at_their_error": runs[0][1]}
    return {}


def bench_cp(case: str, limit_s: float, extrapolate: bool, save: Save) -> None:
    """Ours, TensorLy as it comes, ours, TensorLy's settings until they reach our error, ours."""
    weight, rank = kernel(case), int(case.split("-")[2])
    method = method_named("cp")
    ours(method, weight, (rank,))  # warm
    runs = [ours(method, weight, (rank,))]
    if extrapolate:
        few, more = (theirs(weight, rank, count)[0] for count in (2, 10))
        seconds, error = few + (more - few) / 8 * 98, math.nan
    else:
        seconds, error = theirs(weight, rank, 100)
    runs.append(ours(method, weight, (rank,)))
    known = [item for item in SETTINGS if item[1] == "core" or find_spec("opt_einsum")]
    probes = {item: until(weight, rank, item, {"init": "random"}, 0.0, 4.0) for item in known}
    each = {item: probe["seconds"] / probe["iterations"] for item, probe in probes.items()}
    quickest = min(known, key=lambda item: each[item])
    found = []
    for variant in VARIANTS:
        options = {key: value * rank if key == "n_samples" else value for key, value in variant.items()}
        found.append(until(weight, rank, quickest, options, runs[0][1], limit_s))
        print(json.dumps(found[-1]), flush=True)
    runs.append(ours(method, weight, (rank,)))
    mine = statistics.median(run[0] for run in runs)
    loosest = at_error(weight, rank, error) if not extrapolate else {}
    best = min(
        (item for item in found if item.get("reached")), key=lambda item: item["seconds"], default=None
    )
    longest = max(item.get("seconds", 0.0) for item in found)
    save(
        {
            "bench": "cp",
            "case": case,
            "shape": list(weight.shape),
            "rank": rank,
            "ours_s": [run[0] for run in runs],
            "ours_error": runs[0][1],
            "tensorly_s": seconds,
            "tensorly_is_extrapolated": extrapolate,
            "tensorly_error": error,
            "ratio": seconds / mine,
            **loosest,
            "ratio_at_their_error": seconds / loosest["at_their_error_s"] if loosest else None,
            "seconds_an_iteration": {" ".join(item): value for item, value in each.items()},
            "settings": found,
            "fastest": best,
            "ratio_to_fastest": best["seconds"] / mine if best else None,
            "at_least": None if best else longest / mine,
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bench", choices=("cp", *OTHERS))
    parser.add_argument("--case", choices=(*CASES, *STRUCTURED), default=CASES[0])
    parser.add_argument("--limit-s", type=float, default=60.0, help="most seconds of one TensorLy setting")
    parser.add_argument(
        "--extrapolate", action="store_true", help="10 of TensorLy's 100 iterations, and say so in the row"
    )
    parser.add_argument("--out", type=Path, help="JSON lines to append to")
    given = parser.parse_args()
    torch.set_grad_enabled(False)

    def save(row: dict[str, Any]) -> None:
        text = json.dumps(
            {**row, "torch_threads": torch.get_num_threads(), "machine": machine()["processor"]}
        )
        print(text, flush=True)
        if given.out:
            with given.out.open("a", encoding="utf-8") as file:
                file.write(text + "\n")

    if given.bench == "cp":
        bench_cp(given.case, given.limit_s, given.extrapolate, save)
    else:
        OTHERS[given.bench](save)


if __name__ == "__main__":
    main()
