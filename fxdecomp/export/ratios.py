"""`Ratio`: how many times one series of times is another, with its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times faster one model is than another, with a 95 % confidence interval.

    Example:
        >>> from fxdecomp.export import Ratio
        >>> print(Ratio(1.88, 1.79, 1.93))
        1.88x [1.79, 1.93]
    """

    value: float
    low: float
    high: float

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:.2f}x [{self.low:.2f}, {self.high:.2f}]"


def ratio_of_medians(
    first: tuple[float, ...], second: tuple[float, ...], *, paired: bool = True, seed: int = 0
) -> Ratio:
    """Ratio of the medians of two series, with its bootstrap interval.

    Args:
        first: Seconds, one a round.
        second: The same of another model.
        paired: Whether they were measured in turn, a round of each, as many of both.
        seed: Of the resampling.
    """
    from scipy import stats

    def ratio(a: NDArray[np.float64], b: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        return np.asarray(np.median(a, axis=axis) / np.median(b, axis=axis))

    a, b = np.asarray(first), np.asarray(second)
    value = float(ratio(a, b))
    if min(len(a), len(b)) < 2:  # one round says nothing of others
        return Ratio(value, value, value)
    found = stats.bootstrap(
        (a, b), ratio, paired=paired, vectorized=True, n_resamples=4000, method="percentile", rng=seed
    ).confidence_interval
    return Ratio(value, float(found.low), float(found.high))
