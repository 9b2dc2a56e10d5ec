"""`benchmark`: several ONNX files timed against each other, in turn, so that a busy machine slows all alike.

Each round visits every model once (A B A B ..., every other round backwards) and runs it until 20 ms are
full; the first run of a visit only warms the caches again and is not counted. A round's time is the median of
its runs.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxdecomp.errors import BenchmarkError
from fxdecomp.export.benchmark_report import BenchmarkReport, Timing
from fxdecomp.export.kernels import Kernel
from fxdecomp.export.loading import VISIT_S, NotTimed, Runner, Setting, load_runner
from fxdecomp.export.machine import machine
from fxdecomp.export.sessions import CPU, thread_count
from fxdecomp.progress import Progress, silent
from fxdecomp.providers import described


def benchmark(
    models: Mapping[str, Path | str],
    *,
    providers: Sequence[str] = (CPU,),
    threads: int | Sequence[int] = 1,
    batch_sizes: int | Sequence[int] | None = None,
    rounds: int = 30,
    inputs: Mapping[str, NDArray[Any]] | None = None,
    axes: Mapping[str, int] | None = None,
    provider_options: Mapping[str, Mapping[str, str]] | None = None,
    profile: bool = True,
    memory: bool = False,
    seed: int = 0,
    progress: Progress = silent,
) -> BenchmarkReport:
    """Time ONNX files against each other on every provider, number of threads and batch size.

    A provider that is not there, cannot be loaded, or silently leaves layers to the CPU is a row that says
    so.

    Args:
        models: Name -> ONNX file.
        providers: Execution providers of ONNX Runtime.
        threads: Intra-op threads, one or several settings; 0 means every core of this process.
        batch_sizes: One or several; by default the batch that the files fix, else 1.
        rounds: How often each model is visited.
        inputs: The inputs of every model, by name; random ones by default. They settle the batch size.
        axes: Lengths of free axes, by the name of their symbol. By default the file's
            own example decides.
        provider_options: Options by provider.
        profile: Whether to make the kernel tables.
        memory: Whether to measure the peak of memory, each model in a process of its own.
        seed: Seed of the random inputs.
        progress: Told of every round, by setting.

    Returns:
        Times, ratios and kernel tables.

    Raises:
        BenchmarkError: If a file is missing or an input cannot be made.
        ExportError: If onnxruntime is missing.

    Example:
        >>> import tempfile, torch, fxdecomp
        >>> from pathlib import Path
        >>> gm = fxdecomp.trace(torch.nn.Sequential(torch.nn.Linear(64, 32)), torch.randn(1, 64))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "small.onnx"
        ...     _ = fxdecomp.export.to_onnx(gm, torch.randn(1, 64), path)
        ...     times = fxdecomp.export.benchmark({"small": path}, rounds=2)
        >>> times.median_s["small"] > 0
        True
    """
    paths = {name: Path(path) for name, path in models.items()}
    missing = [str(path) for path in paths.values() if not path.is_file()]
    if missing or not paths:
        raise BenchmarkError(f"no such file: {', '.join(missing)}" if missing else "no model to time")
    if rounds < 2:
        raise BenchmarkError(f"rounds is {rounds}; an interval needs at least 2")
    if inputs is not None and batch_sizes is not None:
        raise BenchmarkError("inputs settle the batch size; give either inputs or batch_sizes")
    timings: list[Timing] = []
    kernels: dict[str, tuple[Kernel, ...]] = {}
    settings = [
        Setting(
            provider,
            described(provider).settings(thread_count(count), (provider_options or {}).get(provider)),
            thread_count(count),
            batch,
            inputs,
            axes or {},
            seed,
        )
        for provider in providers
        for count in ((threads,) if isinstance(threads, int) else threads)
        for batch in ((batch_sizes,) if batch_sizes is None or isinstance(batch_sizes, int) else batch_sizes)
    ]
    for setting in settings:
        profiled = set(paths) - set(kernels) if profile else set()
        rows, tables = _time_setting(
            paths, setting, rounds, profiled=profiled, memory=memory, progress=progress
        )
        timings += rows
        kernels |= tables
    files = {name: {"path": str(path), "bytes": path.stat().st_size} for name, path in paths.items()}
    return BenchmarkReport(
        timings=tuple(timings),
        kernels=kernels,
        machine=machine(),
        settings={
            "order": "interleaved, every other round backwards",
            "rounds": rounds,
            "visit_s": VISIT_S,
            "inter_op_threads": 1,
            "spinning": "within a run only",
            "graph_optimisation": "all",
            "provider_options": {
                name: {**described(name).options, **(provider_options or {}).get(name, {})}
                for name in providers
            },
            "thread_options": {name: described(name).thread_option or "intra_op" for name in providers},
            "io_binding": [name for name in providers if described(name).device],
            "files": files,
            "seed": seed,
        },
    )


def _time_setting(
    paths: Mapping[str, Path],
    setting: Setting,
    rounds: int,
    *,
    profiled: set[str],
    memory: bool,
    progress: Progress,
) -> tuple[list[Timing], dict[str, tuple[Kernel, ...]]]:
    """Time every model in one setting; and the kernel tables of those that are to be profiled."""
    work = f"timing on {setting.provider}, {setting.threads} thread(s), batch {setting.batch or 1}"
    progress(work, 0, rounds)
    loaded: dict[str, Runner | str] = {}
    for name, path in paths.items():
        try:
            loaded[name] = load_runner(name, path, setting, profile=name in profiled, memory=memory)
        except NotTimed as reason:
            loaded[name] = str(reason)
    runners = [runner for runner in loaded.values() if isinstance(runner, Runner)]
    for runner in runners:
        runner.warm_up()
    for index in range(rounds):
        for runner in runners if index % 2 == 0 else reversed(runners):
            runner.visit()
        progress(work, index + 1, rounds)
    rows = [
        Timing(name, setting.provider, setting.threads, setting.batch or 1, problem=item)
        if isinstance(item, str)
        else _timing(item, setting)
        for name, item in loaded.items()
    ]
    return rows, {runner.model: runner.kernels for runner in runners if runner.model in profiled}


def _timing(runner: Runner, setting: Setting) -> Timing:
    return Timing(
        model=runner.model,
        provider=setting.provider,
        threads=setting.threads,
        batch=runner.batch,
        rounds_s=tuple(runner.rounds_s),
        median_s=statistics.median(runner.runs_s),
        p95_s=float(np.quantile(runner.runs_s, 0.95)),
        first_run_s=runner.first_run_s,
        load_s=runner.load_s,
        peak_bytes=runner.peak_bytes,
        nodes=dict(runner.nodes),
    )
