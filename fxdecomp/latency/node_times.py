"""The time of a chain by the nodes of ONNX Runtime's profile, without the borders of the small graph.

Between two runs the processor's caches are filled with something else: in a network the other layers do that,
and weights come from memory.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np

from fxdecomp.export.kernels import profile_events
from fxdecomp.latency.cache import Taken
from fxdecomp.latency.chain_graphs import AFTER, BEFORE, chain_graph
from fxdecomp.latency.place import Place
from fxdecomp.layers import LayerSpec

_RUNS = 9
_QUANTILE = 0.25
"""Other work on the machine only ever adds to a time, so that the middle of the faster half is taken."""

_FLUSHED_FLOATS = 1 << 24
_LEAST_S = 1e-9


def node_time(place: Place, chain: Sequence[LayerSpec]) -> Taken:
    """Time of the nodes between a chain's neighbours."""
    other = np.zeros(_FLUSHED_FLOATS, np.float32)
    with place.written(chain_graph(chain)) as (path, feed):
        events = profile_events(
            path,
            feed,
            provider=place.provider,
            provider_options=place.options,
            threads=place.threads,
            runs=_RUNS + 1,
            before_run=lambda: np.add(other, 1, out=other),
        )
    taken = float(np.quantile([_inside_s(run) for run in _runs(events)[1:]], _QUANTILE))
    return Taken(max(taken, _LEAST_S))


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
