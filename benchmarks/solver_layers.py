"""Whole networks, memory and executors: the parts of `benchmarks.solvers` that are not about CP alone."""

from __future__ import annotations

import math
import multiprocessing as mp
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from tensorly import tenalg
from tensorly.decomposition import partial_tucker
from torch import Tensor, nn

from benchmarks.solver_sides import Save, ours, relative_error, spec_of, timed
from fxdecomp.allocation.candidates import Question, candidates
from fxdecomp.allocation.workers import Workers
from fxdecomp.calibration.moments import Moments, MomentsSum
from fxdecomp.decompositions import Decomposition, decompose, method_named, problems_of
from fxdecomp.layers import LayerSpec
from fxdecomp.ranks import VBMF, Fixed, RankRule, Ratio

THIRD = Ratio(1 / 3)


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


def bench_vgg16(save: Save) -> None:
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


def bench_memory(save: Save) -> None:
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


def bench_executors(save: Save) -> None:
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


def bench_side_by_side(save: Save) -> None:
    """The candidates of a budget at eight layers that are fitted to inputs: one by one, and side by side."""
    for channels in (16, 32, 64, 128, 256):
        spec = LayerSpec(channels, channels, kernel=(3, 3), padding=((1, 1),) * 2, input_size=(14, 14))
        sums = MomentsSum()
        sums.add(torch.randn(2 * 9 * channels, 9 * channels).cumsum(1) / channels)
        moments = (sums.moments(),)
        row = {"bench": "side by side", "channels": channels, "threads": torch.get_num_threads()}
        times: dict[str, list[float]] = {"one_by_one_s": [], "side_by_side_s": []}
        for _ in range(3):
            for taken, room_bytes in zip(times.values(), (0.0, math.inf), strict=True):
                layers = _questions(spec, moments)
                work = partial(_answered, layers, room_bytes)
                taken.append(timed(work)[0])
        save(row | {name: min(taken) for name, taken in times.items()})


def _questions(spec: LayerSpec, moments: tuple[Moments, ...]) -> dict[str, Question]:
    """What a budget asks at eight layers of random weights."""
    found = {}
    for index in range(8):
        weight, name = torch.randn(spec.weight_shape), f"{index}"
        problems = problems_of(weight, spec, moments)
        found[name] = Question(name, (spec,), weight, 0, "auto", 1, problems=problems)
    return found


def _answered(layers: dict[str, Question], room_bytes: float) -> None:
    with patch("fxdecomp.allocation.workers._LEAST_WEIGHTS", 0):  # the small ones as well
        dict(Workers().answers(candidates, layers, room_bytes))
