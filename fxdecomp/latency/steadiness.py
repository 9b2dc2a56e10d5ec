"""`Watch`: whether a machine is as quick as it was, by a small chain that is timed again and again.

Other work slows what runs beside it, some layers by a tenth and some fivefold. Times of layers that were
taken before and during it cannot be compared, however often each was repeated. The quickest time of the small
chain is kept on disk beside the times that it vouches for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fxdecomp.latency.cache import LatencyCache, Taken

DISTURBED = 1.3
"""How many times slower than at its quickest the chain is where the machine does other work."""

_RUNS = 15


class Watch:
    """Times a run now and then."""

    def __init__(self, run: Callable[[], float], cache: LatencyCache, key: dict[str, Any]) -> None:
        """Warm up.

        Args:
            run: One run, which gives the seconds that it took.
            cache: Where its quickest time is kept.
            key: The name of that.
        """
        self._run, self._cache, self._key = run, cache, key
        kept = cache.get(key)
        self._quickest_s = math.inf if kept is None else kept.time_s
        self.slowdown()

    def slowdown(self) -> float:
        """How many times slower than at its quickest it is now; the middle of a few runs."""
        now = float(np.median([self._run() for _ in range(_RUNS)]))
        if now < self._quickest_s:
            self._quickest_s = now
            self._cache.put(self._key, Taken(now))
        return now / self._quickest_s
