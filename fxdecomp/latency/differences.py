"""The time of a chain where no single layer has one: the difference of two small whole networks.

One holds the chain between two neighbours, n times side by side on inputs of their own; the other holds
neighbours alone. With runs of both in turn, a_i and b_i,

    time = median(a_i - b_i) / n,    error = 1.25 * 1.48 * MAD(a_i - b_i) / (n sqrt(runs))

the error being that of a median whose noise is normal (MAD: median absolute deviation). What a run costs
besides its layers is in both and cancels. Short chains whose error is large are put side by side more often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fxdecomp.latency.cache import Taken
from fxdecomp.latency.chain_graphs import chains_and_ends
from fxdecomp.latency.place import Place
from fxdecomp.layers import LayerSpec

_FEW, _MANY = 2, 8
_WARM_UP = 3
_RUNS = 21
_GOOD_ERROR = 0.05
_LONG_S = 5e-3
"""No network is made longer than this: more runs of it would tell less than they take."""

_LEAST_S = 1e-9


def difference(place: Place, chain: Sequence[LayerSpec]) -> Taken:
    """Time of a chain between its neighbours, and its error."""
    found = _side_by_side(place, chain, _FEW)
    if found.error_s <= _GOOD_ERROR * found.time_s or _MANY * found.time_s > _LONG_S:
        return found
    return min(found, _side_by_side(place, chain, _MANY), key=lambda each: each.error_s)


def _side_by_side(place: Place, chain: Sequence[LayerSpec], copies: int) -> Taken:
    median, error = paired(*map(place.run_of, chains_and_ends(chain, copies)))
    return Taken(max(median / copies, _LEAST_S), error / copies)


def paired(first: Callable[[], float], second: Callable[[], float]) -> tuple[float, float]:
    """By how many seconds the first takes longer than the second, run in turn, and the error of that."""
    found = [first() - second() if index % 2 else -(second() - first()) for index in range(_WARM_UP + _RUNS)]
    counted = np.asarray(found[_WARM_UP:])
    median = float(np.median(counted))
    spread = 1.4826 * float(np.median(np.abs(counted - median)))
    return median, 1.2533 * spread / len(counted) ** 0.5
