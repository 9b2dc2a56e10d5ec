"""`ChainTimes`: how long a chain of stages takes on a provider, measured once and kept on disk.

On the CPU the time is that of the chain's own nodes in ONNX Runtime's profile, without the borders of the
small graph. Between two runs the processor's caches are filled with something else: in a network the other
layers do that, and weights come from memory. Elsewhere it is the time of the whole small graph less that of
its neighbours alone.
"""

from __future__ import annotations

import tempfile
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fxdecomp.errors import PolicyError
from fxdecomp.export.kernels import profile_events
from fxdecomp.export.machine import machine
from fxdecomp.export.sessions import (
    CPU,
    available_providers,
    bound_run,
    onnxruntime,
    open_session,
    thread_count,
)
from fxdecomp.latency.cache import LatencyCache, cache_folder
from fxdecomp.latency.chain_graphs import AFTER, BEFORE, chain_graph
from fxdecomp.layers import LayerSpec
from fxdecomp.providers import described

_RUNS = 9
_QUANTILE = 0.25
"""Other work on the machine only ever adds to a time, so that the middle of the faster half is taken."""

_FLUSHED_FLOATS = 1 << 24
_BLOCKS = (16, 8, 4)
_BLOCK_CHANNELS = 64
_BLOCK_SIZE = (28, 28)


@dataclass(slots=True)
class ChainTimes:
    """Times of chains on one provider.

    Attributes:
        provider: The execution provider.
        threads: Intra-op threads; 0 for every core of this process.
        cache: Where times are kept.
        measured: How many chains were timed, not read from the cache.

    Raises:
        PolicyError: This onnxruntime has no such provider.
    """

    provider: str = CPU
    threads: int = 1
    cache: LatencyCache = field(default_factory=lambda: LatencyCache(cache_folder()))
    measured: int = 0
    _known: dict[tuple[LayerSpec, ...], float] = field(default_factory=dict)
    _place: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        offered = available_providers()
        if self.provider not in offered:
            raise PolicyError(
                f"Latency: this onnxruntime has no {self.provider}; it has {', '.join(offered)}"
            )
        self._place = {
            "format": 1,
            "provider": self.provider,
            "version": onnxruntime().__version__,
            "processor": machine()["processor"],
            "threads": thread_count(self.threads),
            "dtype": "float32",
        }

    def time_s(self, specs: Sequence[LayerSpec]) -> float:
        """Time of one run of a chain between its neighbours, in seconds."""
        chain = tuple(specs)
        if chain not in self._known:
            key = self._place | {"chain": [_plain(spec) for spec in chain]}
            found = self.cache.get(key)
            if found is None:
                found = self._measure(chain)
                self.measured += 1
                self.cache.put(key, found)
            self._known[chain] = found
        return self._known[chain]

    def good_block(self) -> int:
        """What ranks should be multiples of: the largest block whose remainder is paid in full.

        A pair of pointwise layers through 32 channels is timed against pairs through half a block less.
        """
        whole = self.time_s(_pair(32))
        for block in _BLOCKS:
            free = (32 - block / 2) / 32  # where the remainder costs nothing
            if self.time_s(_pair(32 - block // 2)) > (1 + free) / 2 * whole:
                return block
        return 1

    def _measure(self, chain: tuple[LayerSpec, ...]) -> float:
        if described(self.provider).times_nodes:
            return max(self._node_time_s(chain), 1e-9)
        return max(self._run_time_s(chain) - self._run_time_s(chain[:1], empty=True), 1e-9)

    def _node_time_s(self, chain: tuple[LayerSpec, ...]) -> float:
        import onnx

        model, shape = chain_graph(chain)
        other = np.zeros(_FLUSHED_FLOATS, np.float32)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "chain.onnx")
            onnx.save(model, str(path))
            events = profile_events(
                path,
                {"x": _values(shape)},
                provider=self.provider,
                threads=self.threads,
                runs=_RUNS + 1,
                before_run=lambda: np.add(other, 1, out=other),
            )
        return float(np.quantile([_inside_s(run) for run in _runs(events)[1:]], _QUANTILE))

    def _run_time_s(self, chain: tuple[LayerSpec, ...], *, empty: bool = False) -> float:
        import onnx

        model, shape = chain_graph(chain, empty=empty)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "chain.onnx")
            onnx.save(model, str(path))
            session = open_session(path, provider=self.provider, threads=self.threads)
            run = bound_run(session, self.provider, {"x": _values(shape)})
            taken = []
            for _ in range(2 * _RUNS + 3):
                start = time.perf_counter()
                run()
                taken.append(time.perf_counter() - start)
        return float(np.quantile(taken[3:], _QUANTILE))


def _plain(spec: LayerSpec) -> dict[str, Any]:
    """The spec as JSON data, equal to what comes back from a file; recurrence only where there is one."""
    return {
        key: [list(item) if isinstance(item, tuple) else item for item in value]
        if isinstance(value, tuple)
        else value
        for key, value in asdict(spec).items()
        if key != "recurrence" or value is not None
    }


def _pair(rank: int) -> tuple[LayerSpec, ...]:
    one = LayerSpec(_BLOCK_CHANNELS, _BLOCK_CHANNELS, (1, 1), input_size=_BLOCK_SIZE)
    return (
        one.pointwise(_BLOCK_CHANNELS, rank, at_output=False),
        one.pointwise(rank, _BLOCK_CHANNELS, at_output=True),
    )


def _values(shape: tuple[int, ...]) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _runs(events: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The nodes of every run, in the order in which they ran."""
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")
    runs: list[list[dict[str, Any]]] = [[] for _ in starts]
    for event in sorted(events, key=lambda each: each["ts"]):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            runs[bisect_right(starts, event["ts"]) - 1].append(event)
    return runs


def _inside_s(run: list[dict[str, Any]]) -> float:
    """Time of the nodes between the neighbours."""
    first, last = 0, len(run)
    for index, event in enumerate(run):
        if event["name"].startswith(BEFORE):
            first = index + 1
        if event["name"].startswith(AFTER):
            last = min(last, index)
    return 1e-6 * float(sum(event["dur"] for event in run[first:last]))
