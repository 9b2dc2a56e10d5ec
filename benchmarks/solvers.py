"""The solvers against TensorLy's and NumPy's: time and error, both sides in one run, interleaved.

    python -m benchmarks.solvers cp --case random-512-128  # CP; or random-512-256, random-256-64, ...
    python -m benchmarks.solvers vgg16      # Tucker-2 at a third of the channels, SVD of the Linear layers
    python -m benchmarks.solvers memory     # peak memory, each case in a process of its own
    python -m benchmarks.solvers executors  # layers side by side, on threads and processes

TensorLy's `einsum` setting takes part where `opt_einsum` is installed (its plugin needs it); it is off for
fxdecomp's side, whose users need not have it. Rows are appended to --out as they are done.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing as mp
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import tensorly as tl
import torch
from tensorly import plugins, tenalg
from tensorly.decomposition import parafac, partial_tucker, randomised_parafac
from torch import Tensor, nn

from fxdecomp.decompositions import Decomposition, decompose, method_named, problems_of
from fxdecomp.demo.recogniser import load_recogniser
from fxdecomp.export.machine import machine
from fxdecomp.layers import LayerSpec
from fxdecomp.ranks import VBMF, Fixed, RankRule, Ratio

warnings.filterwarnings("ignore", message="Trying to compute SVD with n_eigenvecs")
warnings.filterwarnings("ignore", message=".*unclosed.*")

CASES = ("random-256-64", "recogniser-256-64", "random-512-128", "random-512-256")
SETTINGS = (("numpy", "core"), ("pytorch", "core"), ("numpy", "einsum"), ("pytorch", "einsum"))
VARIANTS: tuple[dict[str, Any], ...] = (
    {"init": "random"},
    {"init": "svd"},
    {"init": "random", "linesearch": True},
    {"init": "random", "n_samples": 8},  # randomised_parafac, this many times the rank
)
THIRD = Ratio(1 / 3)


def kernel(case: str) -> Tensor:
    """A random kernel, or the largest of the pretrained recogniser's."""
    kind, channels, _ = case.split("-")
    if kind == "recogniser":
        return load_recogniser().features.get_submodule("conv6").get_parameter("weight").detach()
    n = int(channels)
    return torch.randn(n, n, 3, 3, generator=torch.Generator().manual_seed(0))


def relative_error(weight: Tensor, composed: Tensor) -> float:
    return float(torch.linalg.vector_norm(weight - composed) / torch.linalg.vector_norm(weight))


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def spec_of(weight: Tensor) -> LayerSpec:
    return LayerSpec(weight.shape[1], weight.shape[0], kernel=tuple(weight.shape[2:]))


def ours(method: Decomposition, weight: Tensor, rank: tuple[int, ...]) -> tuple[float, float]:
    """Seconds and error of fxdecomp; nothing is known of the weight beforehand."""
    spec = spec_of(weight)

    def run() -> Any:
        return decompose(method, problems_of(weight, spec), spec, rank, dtype=weight.dtype)

    known = torch.backends.opt_einsum.enabled
    torch.backends.opt_einsum.enabled = False
    seconds, chain = timed(run)
    torch.backends.opt_einsum.enabled = known
    return seconds, relative_error(weight, chain.composed_weight())


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


def bench_cp(case: str, limit_s: float, extrapolate: bool, save: Callable[[dict[str, Any]], None]) -> None:
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
            "seconds_an_iteration": {" ".join(item): value for item, value in each.items()},
            "settings": found,
            "fastest": best,
            "ratio_to_fastest": best["seconds"] / mine if best else None,
            "at_least": None if best else longest / mine,
        }
    )


def vgg16_weights() -> dict[str, Tensor]:
    """The weights of every Conv and Linear of pytorchcv's VGG-16, as it is initialised from seed 0."""
    from pytorchcv.model_provider import get_model

    torch.manual_seed(0)
    model = get_model("vgg16")
    kinds = (nn.Conv2d, nn.Linear)
    return {name: m.weight.detach() for name, m in model.named_modules() if isinstance(m, kinds)}


def rank_by(rule: RankRule, weight: Tensor) -> tuple[Decomposition, tuple[int, ...]]:
    method = method_named("tucker2" if weight.ndim == 4 else "svd")
    rank = rule.choose(method, spec_of(weight), problems_of(weight, spec_of(weight)))
    assert rank is not None
    return method, rank


def same_recipe(weight: Tensor, rank: tuple[int, ...]) -> tuple[float, float]:
    """Seconds and error of `partial_tucker` as it comes, or of NumPy's SVD, truncated."""
    array = weight.numpy()
    if weight.ndim == 4:
        seconds, found = timed(lambda: partial_tucker(array, list(rank), modes=[0, 1])[0])
        composed = tenalg.multi_mode_dot(found[0], found[1], modes=[0, 1])
    else:
        seconds, (U, S, V) = timed(lambda: np.linalg.svd(array, full_matrices=False))
        composed = (U[:, : rank[0]] * S[: rank[0]]) @ V[: rank[0]]
    return seconds, relative_error(weight, torch.from_numpy(composed))


def bench_vgg16(save: Callable[[dict[str, Any]], None]) -> None:
    """Layer by layer, ours and theirs in turn; a third of the channels everywhere."""
    total, theirs_total = 0.0, 0.0
    ours(method_named("svd"), torch.randn(64, 64), (8,))
    for name, weight in vgg16_weights().items():
        method, rank = rank_by(THIRD, weight)
        mine, error = ours(method, weight, rank)
        seconds, their_error = same_recipe(weight, rank)
        total, theirs_total = total + mine, theirs_total + seconds
        print(
            f"{name:28s} {tuple(weight.shape)!s:20s} {rank!s:11s} {mine:7.3f} s {error:.5f}   "
            f"{seconds:8.3f} s {their_error:.5f}   {seconds / mine:6.1f}x",
            flush=True,
        )
    save({"bench": "vgg16", "ours_s": total, "tensorly_numpy_s": theirs_total, "ratio": theirs_total / total})


def status_bytes(key: str) -> int:
    """VmHWM or VmRSS of this process (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def measure_memory(shape: tuple[int, ...], name: str, rank: int | None, pipe: Any) -> None:
    """What a factorisation adds to the peak, the weight itself not counted."""
    method = method_named(name)
    small = torch.randn(64, 64, *shape[2:])
    few = Fixed(8).choose(method, spec_of(small), ())
    assert few is not None
    ours(method, small, few)  # the libraries' own buffers
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    spec = spec_of(weight)
    before = status_bytes("VmRSS")
    problems = problems_of(weight, spec)
    if rank is None:
        VBMF().choose(method, spec, problems)  # nothing in noise, but it needs the spectra
    wanted = THIRD if rank is None else Fixed(rank)
    chosen = wanted.choose(method, spec, problems)
    assert chosen is not None
    decompose(method, problems, spec, chosen, dtype=weight.dtype)
    pipe.send((status_bytes("VmHWM") - before, weight.numel() * weight.element_size(), chosen))


def bench_memory(save: Callable[[dict[str, Any]], None]) -> None:
    """CP on a wide kernel, SVD on VGG's first Linear by a rank and by its whole spectrum."""
    context = mp.get_context("spawn")
    wide, linear = (512, 512, 7, 7), (4096, 25088)
    for shape, name, rank in (
        (wide, "cp", 128),
        (wide, "cp", 512),
        (wide, "tucker2", None),
        (linear, "svd", 128),
        (linear, "svd", 1365),
        (linear, "svd", None),
    ):
        receiver, sender = context.Pipe(duplex=False)
        arguments = (shape, name, rank or None, sender)
        process = context.Process(target=measure_memory, args=arguments)
        seconds, (extra, size, chosen) = timed(lambda p=process, r=receiver: (p.start(), r.recv())[1])  # type: ignore[misc]
        process.join()
        row = {"bench": "memory", "shape": shape, "method": name, "rank": chosen, "by": rank or "spectrum"}
        save(
            {**row, "weight_bytes": size, "extra_bytes": extra, "multiple": extra / size, "seconds": seconds}
        )


def factorise_alone(weight: Tensor) -> float:
    method, rank = rank_by(THIRD, weight)
    return ours(method, weight, rank)[0]


def bench_executors(save: Callable[[dict[str, Any]], None]) -> None:
    """The convolutions of VGG-16: one after the other on all threads, and side by side on one thread each."""
    weights = [weight for weight in vgg16_weights().values() if weight.ndim == 4]
    small = [torch.randn(32, 32, 3, 3) for _ in range(400)]
    cores = torch.get_num_threads()
    for name, work in (("vgg16 convs", weights), ("400 of 32x32x3x3", small)):
        row: dict[str, Any] = {"bench": "executors", "work": name, "threads": cores}
        for _ in range(2):
            torch.set_num_threads(cores)
            row["serial_s"] = timed(lambda w=work: [factorise_alone(each) for each in w])[0]  # type: ignore[misc]
            torch.set_num_threads(1)
            row["serial_one_thread_s"] = timed(lambda w=work: [factorise_alone(each) for each in w])[0]  # type: ignore[misc]
            with ThreadPoolExecutor(cores) as pool:
                row["thread_pool_s"] = _mapped(pool, work)
            context = mp.get_context("spawn")
            with ProcessPoolExecutor(
                cores, context, initializer=torch.set_num_threads, initargs=(1,)
            ) as processes:
                _mapped(processes, small[: 4 * cores])  # started before the clock
                row["process_pool_s"] = _mapped(processes, work)
        save(row)


def _mapped(pool: Executor, work: list[Tensor]) -> float:
    return timed(lambda: list(pool.map(factorise_alone, work)))[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bench", choices=("cp", "vgg16", "memory", "executors"))
    parser.add_argument("--case", choices=CASES, default=CASES[0])
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
        {"vgg16": bench_vgg16, "memory": bench_memory, "executors": bench_executors}[given.bench](save)


if __name__ == "__main__":
    main()
