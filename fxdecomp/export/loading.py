"""A model made ready to be timed, or the reason why it cannot be."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxdecomp.errors import BenchmarkError, first_line
from fxdecomp.export.feeds import fixed_batch, make_feed
from fxdecomp.export.kernels import Kernel, profile_model
from fxdecomp.export.memory import peak_bytes
from fxdecomp.export.metadata import read_metadata
from fxdecomp.export.onnx_layers import OnnxLayers
from fxdecomp.export.sessions import CPU, available_providers, bound_run, open_session
from fxdecomp.providers import described

VISIT_S = 0.02
"""A visit runs a model until this time is full."""

_MAX_VISIT_RUNS = 50
_WARM_UP_S = 2.0


class NotTimed(Exception):  # noqa: N818 - it becomes a row of the report, never an error of the caller
    """Why a model has no times in a setting."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to run every model.

    Attributes:
        provider: The execution provider.
        options: Its options.
        threads: Intra-op threads.
        batch: Batch size, None for the one that a file fixes, else 1.
        inputs: The inputs of every model; random ones if None.
        axes: Lengths of free axes other than the batch.
        seed: Seed of random inputs.
    """

    provider: str
    options: Mapping[str, str]
    threads: int
    batch: int | None
    inputs: Mapping[str, NDArray[Any]] | None
    axes: Mapping[str, int]
    seed: int


@dataclass(slots=True)
class Runner:
    """One loaded model in one setting, and the times taken so far."""

    model: str
    batch: int
    run: Callable[[], object]
    load_s: float
    first_run_s: float
    peak_bytes: int | None = None
    kernels: tuple[Kernel, ...] = ()
    nodes: Mapping[str, int] = field(default_factory=dict)
    rounds_s: list[float] = field(default_factory=list)
    runs_s: list[float] = field(default_factory=list)

    def warm_up(self) -> None:
        """Run until a run is no more than a tenth slower than the fastest so far, at most two seconds."""
        taken: list[float] = []
        while len(taken) < 3 or (taken[-1] > 1.1 * min(taken) and sum(taken) < _WARM_UP_S):
            taken.append(_timed(self.run))

    def visit(self) -> None:
        """Run once uncounted, then until the visit is full."""
        estimate = _timed(self.run)
        count = max(1, min(_MAX_VISIT_RUNS, round(VISIT_S / max(estimate, 1e-6))))
        taken = [_timed(self.run) for _ in range(count)]
        self.runs_s += taken
        self.rounds_s.append(statistics.median(taken))


def load_runner(name: str, path: Path, setting: Setting, *, profile: bool, memory: bool = False) -> Runner:
    """Load a model, run it once and see where its layers ran.

    Args:
        name: The model's name in the report.
        path: The ONNX file.
        setting: How to run it.
        profile: Whether to make the kernel table.
        memory: Whether to measure the peak of memory.

    Raises:
        NotTimed: If the provider is not there or does not run every layer.
        BenchmarkError: If the inputs do not fit the file.
    """
    offered = available_providers()
    if setting.provider not in offered:
        raise NotTimed(f"not available in this onnxruntime, which has {', '.join(offered)}")
    start = time.perf_counter()
    try:
        session = open_session(
            path, provider=setting.provider, provider_options=setting.options, threads=setting.threads
        )
    except Exception as error:
        raise NotTimed(f"cannot load: {first_line(error)}") from error
    load_s = time.perf_counter() - start
    if setting.provider not in session.get_providers():
        raise NotTimed(
            "could not be started, onnxruntime says why on standard error; "
            f"it fell back to {', '.join(session.get_providers())}"
        )
    batch, feed = _feed(session.get_inputs(), path, setting)
    try:
        run = bound_run(session, setting.provider, feed)
        first_run_s = _timed(run)
    except Exception as error:
        raise NotTimed(f"cannot run: {first_line(error)}") from error
    runner = Runner(name, batch, run, load_s, first_run_s)
    if profile or setting.provider != CPU:
        runs = max(3, min(20, round(0.5 / max(first_run_s, 1e-4))))
        found = profile_model(
            path,
            feed,
            provider=setting.provider,
            provider_options=setting.options,
            threads=setting.threads,
            runs=runs,
        )
        strays = [row.name for row in found.kernels if row.macs and row.provider != setting.provider]
        if strays:
            raise NotTimed(
                f"left {len(strays)} layer(s) to another provider: {', '.join(strays[:3])}"
                f"{_advice(path, strays, setting.provider)}"
            )
        runner.kernels, runner.nodes = found.kernels, found.nodes
    if memory:
        runner.peak_bytes = peak_bytes(path, feed, setting.provider, setting.options, setting.threads)
    return runner


def _advice(path: Path, strays: Sequence[str], provider: str) -> str:
    """What to do about layers that a provider is known not to take."""
    layers, refused = OnnxLayers(path).by_name, described(provider).refused
    known = dict.fromkeys(refused[layers[name].op] for name in strays if layers[name].op in refused)
    return "".join(f"; {advice}" for advice in known)


def _feed(declared: Any, path: Path, setting: Setting) -> tuple[int, dict[str, NDArray[Any]]]:
    """The batch size and the inputs."""
    given = setting.inputs
    if given is not None:
        absent = [item.name for item in declared if item.name not in given]
        if absent:
            raise BenchmarkError(f"{path}: the given inputs lack {', '.join(absent)}")
        feed = {item.name: np.asarray(given[item.name]) for item in declared}
        return next((int(value.shape[0]) for value in feed.values() if value.ndim), 1), feed
    fixed = fixed_batch(declared)
    if fixed is not None and setting.batch not in (None, fixed):
        raise NotTimed(f"the file fixes the batch to {fixed}")
    batch = _named_batch(declared, setting.axes) or setting.batch or fixed or 1
    metadata = read_metadata(path)
    shapes = metadata.inputs if metadata else {}
    return batch, make_feed(
        declared, batch=batch, axes=setting.axes, example_shapes=shapes, seed=setting.seed
    )


def _named_batch(declared: Any, axes: Mapping[str, int]) -> int | None:
    """The length that `axes` gives to the first axis of the first input."""
    shape = declared[0].shape if declared else []
    return axes.get(shape[0]) if shape else None


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
