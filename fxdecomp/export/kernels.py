"""The kernel table: where the time of a model goes, by ONNX Runtime's own profile, by site and stage.

ONNX Runtime renames what it fuses. Seen in its optimised graphs, and undone here:
`<output of the conv>_nchwc` for convolutions in the blocked layout, `fused <name>` and `<name>/<Fusion>/...`
for fused ones, `<name>_token_<n>` where a name was taken.
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fxdecomp.export.onnx_layers import OnnxLayer, OnnxLayers
from fxdecomp.export.sessions import open_session
from fxdecomp.providers import described

OTHER = "other"


@dataclass(frozen=True, slots=True)
class Kernel:
    """The time of one layer or stage.

    Attributes:
        name: Site and stage, such as `features.3.core`; `other` for everything that is no layer.
        kind: dense, pointwise, depthwise, core, linear or other.
        time_s: Median time in one run, in seconds.
        share: Part of the summed time of all kernels.
        macs: Multiply-accumulates; 0 for `other`.
        provider: Where it ran; several, joined by commas, only for `other`.

    Example:
        >>> from fxdecomp.export import Kernel
        >>> Kernel("features.3.core", "core", 1e-3, 0.5, 10_000_000, "CPUExecutionProvider").gflops
        20.0
    """

    name: str
    kind: str
    time_s: float
    share: float
    macs: int
    provider: str

    @property
    def gflops(self) -> float:
        """Speed in GFLOP/s, a multiply-accumulate counted as two operations."""
        return 2e-9 * self.macs / self.time_s if self.time_s else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON data."""
        return asdict(self) | {"gflops": self.gflops}


@dataclass(frozen=True, slots=True)
class Profile:
    """One profiled model: its kernels in the order in which they ran, and the number of nodes by provider."""

    kernels: tuple[Kernel, ...]
    nodes: Mapping[str, int]


def profile_model(
    path: Path,
    feed: Mapping[str, NDArray[Any]],
    *,
    provider: str,
    provider_options: Mapping[str, str] | None = None,
    threads: int = 1,
    runs: int = 5,
) -> Profile:
    """Run a model under ONNX Runtime's profiler.

    Args:
        path: The ONNX file.
        feed: Its inputs.
        provider: The execution provider that is asked for.
        provider_options: Options of the provider.
        threads: Intra-op threads, 0 for every core.
        runs: Counted runs, after two that warm up.

    Returns:
        The kernels and what ran where.
    """
    events = profile_events(
        path, feed, provider=provider, provider_options=provider_options, threads=threads, runs=runs + 2
    )
    return _read(events, OnnxLayers(path), warmup=2)


def profile_events(
    path: Path,
    feed: Mapping[str, NDArray[Any]],
    *,
    provider: str,
    provider_options: Mapping[str, str] | None = None,
    threads: int = 1,
    runs: int,
    before_run: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
    """What ONNX Runtime's profiler writes down of some runs, `before_run` called before each."""
    hiding = described(provider).unprofiled
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(
            path,
            provider=provider,
            provider_options={key: v for key, v in (provider_options or {}).items() if key not in hiding},
            threads=threads,
            profile_prefix=Path(folder) / "profile",
        )
        for _ in range(runs):
            before_run()
            session.run(None, dict(feed))
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return events


def _read(events: list[dict[str, Any]], layers: OnnxLayers, *, warmup: int) -> Profile:
    """Kernels from a profile: per layer the median over runs of what its nodes took in one run."""
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")
    times: dict[str, list[float]] = {}
    macs: dict[str, int] = defaultdict(int)
    providers: dict[str, set[str]] = defaultdict(set)
    kinds: dict[str, str] = {}
    nodes: dict[str, set[str]] = defaultdict(set)
    for event in events:
        run = bisect_right(starts, event["ts"]) - 1 - warmup
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time") or run < 0:
            continue
        name = event["name"].removesuffix("_kernel_time")
        layer = find_layer(name, layers)
        key = layer.name if layer else OTHER
        kinds.setdefault(key, layer.kind if layer else OTHER)
        times.setdefault(key, [0.0] * (len(starts) - warmup))[run] += event["dur"] * 1e-6
        provider = event["args"].get("provider", "")
        providers[key].add(provider)
        nodes[provider].add(name)
        if layer and not macs[key]:
            macs[key] = _macs(layer, event["args"])
    medians = {key: statistics.median(taken) for key, taken in times.items()}
    total = sum(medians.values()) or 1.0
    order = [key for key in medians if key != OTHER] + [key for key in medians if key == OTHER]
    kernels = tuple(
        Kernel(
            key, kinds[key], medians[key], medians[key] / total, macs[key], ",".join(sorted(providers[key]))
        )
        for key in order
    )
    return Profile(kernels, {provider: len(names) for provider, names in nodes.items()})


def find_layer(name: str, layers: OnnxLayers) -> OnnxLayer | None:
    """The layer that a node of the runtime's optimised graph stands for, None where it is none."""
    name = re.sub(r"_token_\d+$", "", name)
    if name.endswith("_nchwc"):
        made = layers.made(name.removesuffix("_nchwc"))
        return made[0] if made else None
    name = name.removeprefix("fused ")
    if name in layers.by_name:
        return layers.by_name[name]
    return layers.by_name.get(re.split(r"[/]|_quant$|_nhwc$", name)[0])


def _macs(layer: OnnxLayer, args: Mapping[str, Any]) -> int:
    shapes = [
        [next(iter(item.values())) for item in args.get(key, []) if item]
        for key in ("input_type_shape", "output_type_shape")
    ]
    if not shapes[0] or not shapes[1]:
        return 0
    return layer.macs(shapes[0][0], shapes[1][0])
