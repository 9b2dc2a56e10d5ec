"""`bench_kernels`: the kernels that chains are made of, one by one, on one provider.

Every kernel is a small ONNX graph. Where the provider's nodes have times, its time is that of its own node in
ONNX Runtime's profile, so that the layout changes at the ends of so small a graph do not count; elsewhere it
is the time of the whole run.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fxdecomp.errors import BenchmarkError
from fxdecomp.export.kernel_map import KernelMap, KernelPoint
from fxdecomp.export.kernels import profile_model
from fxdecomp.export.lowering import write_lowered
from fxdecomp.export.machine import machine
from fxdecomp.export.sessions import CPU, bound_run, check_available, open_session, thread_count
from fxdecomp.progress import Progress, silent
from fxdecomp.providers import described

KERNELS: Mapping[str, tuple[tuple[int, int], bool]] = {
    "pointwise": ((1, 1), False),
    "depthwise 3x1": ((3, 1), True),
    "depthwise 1x3": ((1, 3), True),
    "depthwise 3x3": ((3, 3), True),
    "core 3x3": ((3, 3), False),
}
"""Kind -> (kernel, whether it is depthwise)."""

CHANNELS = (16, 32, 64, 128, 256, 512)
SIZES = (14, 28, 56)

_ITEM_BYTES = {"float32": 4, "float16": 2, "int8": 1}
_GEMM = 1024
_COPY_FLOATS = 1 << 24
_TRIES = 3


def bench_kernels(
    *,
    provider: str = CPU,
    precision: Literal["float32", "float16", "int8"] = "float32",
    threads: int = 1,
    channels: Sequence[int] = CHANNELS,
    sizes: Sequence[int] = SIZES,
    kinds: Sequence[str] = tuple(KERNELS),
    runs: int = 20,
    progress: Progress = silent,
) -> KernelMap:
    """Time every kind of kernel over channels and sizes.

    Args:
        provider: The execution provider.
        precision: Type of weights and activations.
        threads: Intra-op threads; 0 means every core of this process.
        channels: Channels, in and out.
        sizes: Height and width of the input.
        kinds: Which of `KERNELS`.
        runs: Counted runs of each.
        progress: Told of every kernel.

    Raises:
        BenchmarkError: If the provider is not there, or a kind or precision is unknown.
        ExportError: If onnxruntime is missing.

    Example:
        >>> import fxdecomp
        >>> sizes = {"channels": (16,), "sizes": (14,), "kinds": ("pointwise",)}
        >>> len(fxdecomp.export.bench_kernels(runs=1, **sizes).points)
        1
    """
    unknown = [kind for kind in kinds if kind not in KERNELS]
    if unknown or precision not in _ITEM_BYTES:
        wanted = list(KERNELS) if unknown else list(_ITEM_BYTES)
        raise BenchmarkError(f"there is no {(*unknown, precision)[0]!r}; wanted some of {wanted}")
    check_available(provider)
    bench = _Bench(provider, precision, thread_count(threads), runs)
    # A ceiling is the best of several tries.
    peak = 2e-9 * _GEMM**3 / min(bench.time_s(_gemm(), (1, _GEMM, _GEMM)) for _ in range(_TRIES))
    # The copy is measured in float32 whatever the precision: it is the machine that is asked, not the type.
    copy = _Bench(provider, "float32", thread_count(threads), runs)
    bandwidth = 2e-9 * 4 * _COPY_FLOATS / min(copy.time_s(_copy(), (1, _COPY_FLOATS)) for _ in range(_TRIES))
    cases = [(kind, count, size) for kind in kinds for size in sizes for count in channels]
    points = []
    for index, (kind, count, size) in enumerate(cases):
        kernel, depthwise = KERNELS[kind]
        macs = count * (1 if depthwise else count) * kernel[0] * kernel[1] * size * size
        weights = count * (1 if depthwise else count) * kernel[0] * kernel[1]
        moved = (weights + 2 * count * size * size) * _ITEM_BYTES[precision]
        taken = bench.time_s(_conv(kernel, count, size, depthwise=depthwise), (1, count, size, size))
        bound = min(peak, bandwidth * 2 * macs / moved)
        points.append(KernelPoint(kind, count, size, taken, macs, moved, bound))
        progress("timing kernels", index + 1, len(cases))
    return KernelMap(tuple(points), peak, bandwidth, provider, precision, bench.threads, machine())


class _Bench:
    """Times one-node models in one setting."""

    def __init__(self, provider: str, precision: str, threads: int, runs: int) -> None:
        self.threads = threads
        self._provider = provider
        self._precision = precision
        self._runs = runs

    def time_s(self, model: Any, shape: tuple[int, ...]) -> float:
        """Median time of the model's node, in seconds."""
        feed: dict[str, NDArray[Any]] = {
            "x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        }
        with tempfile.TemporaryDirectory() as folder:
            path = write_lowered(model, Path(folder), self._precision, feed)
            if described(self._provider).times_nodes:
                profile = profile_model(
                    path, feed, provider=self._provider, threads=self.threads, runs=self._runs
                )
                named = [row for row in profile.kernels if row.name == "kernel"]
                return sum(row.time_s for row in named or profile.kernels)
            return self._whole_run_s(path, feed)

    def _whole_run_s(self, path: Path, feed: dict[str, NDArray[Any]]) -> float:
        session = open_session(path, provider=self._provider, threads=self.threads)
        run = bound_run(session, self._provider, feed)
        taken = []
        for _ in range(self._runs + 3):
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
        return statistics.median(taken[3:])


def _conv(kernel: tuple[int, int], channels: int, size: int, *, depthwise: bool) -> Any:
    weight = np.random.default_rng(1).standard_normal((channels, 1 if depthwise else channels, *kernel))
    pads = [kernel[0] // 2, kernel[1] // 2] * 2
    attributes = {"kernel_shape": list(kernel), "pads": pads, "group": channels if depthwise else 1}
    return _model("Conv", [1, channels, size, size], weight / weight[0].size ** 0.5, attributes)


def _gemm() -> Any:
    weight = np.random.default_rng(1).standard_normal((_GEMM, _GEMM)) / _GEMM**0.5
    return _model("MatMul", [1, _GEMM, _GEMM], weight, {})


def _copy() -> Any:
    """An element-wise product with one number: reads and writes every byte once."""
    return _model("Mul", [1, _COPY_FLOATS], np.full((1,), 1.5), {})


def _model(op: str, shape: list[int], weight: NDArray[Any], attributes: dict[str, Any]) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node(op, ["x", "kernel.weight"], ["y"], "kernel", **attributes)
    graph = helper.make_graph(
        [node],
        "kernel",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(weight.astype(np.float32), "kernel.weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
