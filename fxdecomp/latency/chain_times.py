"""`ChainTimes`: how long a chain of stages takes in a place, measured once and kept on disk.

Where the provider's nodes have times it is that of the chain's own (`node_times.py`), elsewhere the
difference of two small networks (`differences.py`). After each a watch looks whether other work slows the
machine: then the chain is timed again, and what was not taken in peace is not kept.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fxdecomp.latency.cache import LatencyCache, Taken, cache_folder
from fxdecomp.latency.chain_graphs import chain_graph
from fxdecomp.latency.differences import difference
from fxdecomp.latency.node_times import node_time
from fxdecomp.latency.place import Place
from fxdecomp.latency.steadiness import DISTURBED, Watch
from fxdecomp.layers import LayerSpec

_TRIES = 3
_MOST_AGAIN, _MOST_SHARE = 10, 0.25
"""How often chains are timed again, and beside that for each that was timed: a plan must come to an end on a
machine that is never idle."""

_PAUSE_S = 0.1
_TELLING_S = 5e-3
"""Clocks of processes are too coarse for less."""

_WATCHED = (32, 64, 28)
"""Rank, channels and size of the pair of layers that the watch runs."""


@dataclass(slots=True)
class ChainTimes:
    """Times of chains in one place.

    Attributes:
        place: The provider, as it is run.
        cache: Where times are kept.
        measured: How many chains were timed, not read from the cache.
        again: How often chains were timed again since other work slowed the machine.
        disturbed: How many chains have no better time than one that was taken beside other work.
        slowest: The worst slowdown under which a time was taken that is used.
    """

    place: Place = field(default_factory=Place)
    cache: LatencyCache = field(default_factory=lambda: LatencyCache(cache_folder()))
    measured: int = 0
    again: int = 0
    disturbed: int = 0
    slowest: float = 1.0
    _known: dict[tuple[LayerSpec, ...], Taken] = field(default_factory=dict)
    _watch: Watch | None = None

    def time_s(self, specs: Sequence[LayerSpec]) -> float:
        """Time of one run of a chain between its neighbours, in seconds."""
        chain = tuple(specs)
        if chain not in self._known:
            key = self.place.key() | {"chain": [_plain(spec) for spec in chain]}
            found = self.cache.get(key)
            if found is None:
                found, calm = self._in_peace(chain)
                self.measured += 1
                if calm:
                    self.cache.put(key, found)
            self._known[chain] = found
        return self._known[chain].time_s

    @property
    def error(self) -> float:
        """The error of a time as a share of it, the middle one of all that were asked for; 0 if not known."""
        shares = [taken.error_s / taken.time_s for taken in self._known.values()]
        return statistics.median(shares) if shares else 0.0

    def forget(self) -> None:
        """Leave out what was asked for so far: what was not taken in peace is then measured anew."""
        self._known.clear()
        self.disturbed, self.slowest = 0, 1.0

    def good_multiple(self) -> int:
        """What ranks should be multiples of: the largest block whose remainder is paid in full.

        A pair of pointwise layers through two of the largest blocks is timed against pairs through half a
        block less.
        """
        description = self.place.description
        blocks = description.multiples.get(self.place.precision, description.multiples["float32"])
        channels, size = description.trial
        widest = 2 * blocks[0]
        whole = self.time_s(_pair(widest, channels, size))
        for block in blocks:
            free = (widest - block / 2) / widest  # where the remainder costs nothing
            if self.time_s(_pair(widest - block // 2, channels, size)) > (1 + free) / 2 * whole:
                return block
        return 1

    def _in_peace(self, chain: tuple[LayerSpec, ...]) -> tuple[Taken, bool]:
        """The time that was taken under the least slowdown, and whether nothing else ran."""
        tries: list[tuple[float, Taken]] = []
        while True:
            start = time.perf_counter(), time.process_time()
            taken = self._measure(chain)
            tries.append((self._slowdown(*start), taken))
            if tries[-1][0] <= DISTURBED:
                return taken, True
            if len(tries) == _TRIES or self.again >= _MOST_AGAIN + _MOST_SHARE * self.measured:
                break
            self.again += 1
            time.sleep(_PAUSE_S)
        slowdown, taken = min(tries, key=lambda each: each[0])
        self.disturbed += 1
        self.slowest = max(self.slowest, slowdown)
        return taken, False

    def _measure(self, chain: tuple[LayerSpec, ...]) -> Taken:
        return (node_time if self.place.description.times_nodes else difference)(self.place, chain)

    def _slowdown(self, wall_s: float, cpu_s: float) -> float:
        """How much slower the machine is than at its quickest, by what was done since two clocks, and now.

        The watch's runs are short, and slip between the turns that others get: where more time passed than
        this process had a processor, it waited. A device is waited for too, which says nothing.
        """
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        tells = wall_s > _TELLING_S and cpu_s > 0 and not self.place.description.device
        return max(wall_s / cpu_s if tells else 1.0, self._watched())

    def _watched(self) -> float:
        if self._watch is None:
            run = self.place.run_of(chain_graph(_pair(*_WATCHED)))
            self._watch = Watch(run, self.cache, self.place.key() | {"watched": list(_WATCHED)})
        return self._watch.slowdown()


def _plain(spec: LayerSpec) -> dict[str, Any]:
    """The spec as JSON data, equal to what comes back from a file; recurrence only where there is one."""
    return {
        key: [list(item) if isinstance(item, tuple) else item for item in value]
        if isinstance(value, tuple)
        else value
        for key, value in asdict(spec).items()
        if key != "recurrence" or value is not None
    }


def _pair(rank: int, channels: int, size: int) -> tuple[LayerSpec, ...]:
    one = LayerSpec(channels, channels, (1, 1), input_size=(size, size))
    return (
        one.pointwise(channels, rank, at_output=False),
        one.pointwise(rank, channels, at_output=True),
    )
