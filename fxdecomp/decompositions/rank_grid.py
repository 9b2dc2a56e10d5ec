"""Which ranks a budget considers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

Rank: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RankGrid:
    """Ranks below a method's limits, evenly spread.

    Attributes:
        multiple_of: What ranks are multiples of, where the layer is large enough.
        single: The most ranks of a method that has one.
        paired: The most along each rank of a method that has several, and where each is factorised.
    """

    multiple_of: int
    single: int = 40
    paired: int = 16

    @staticmethod
    def coarse(multiple_of: int) -> RankGrid:
        """For budgets that time candidates."""
        return RankGrid(multiple_of, 10, 7)

    def along(self, limit: int, most: int) -> list[int]:
        """At most so many ranks below a limit; finer than `multiple_of` where few multiples fit."""
        step = self._step(limit)
        ranks = list(range(step, limit, step))
        if len(ranks) <= most:
            return ranks
        picked = {round(i * (len(ranks) - 1) / (most - 1)) for i in range(most)}
        return [ranks[i] for i in sorted(picked)]

    def aligned(self, rank: int, limit: int) -> int:
        """The next multiple of what `along` steps by."""
        step = self._step(limit)
        return max(step, math.ceil(rank / step) * step)

    def diagonal(self, limits: Sequence[int]) -> list[Rank]:
        """Ranks that rise together towards all limits, one entry per rank of the method."""
        if len(limits) == 1:
            return [(rank,) for rank in self.along(limits[0], self.paired)]
        shares = (index / (self.paired + 1) for index in range(1, self.paired + 1))
        ranks = (tuple(min(self.aligned(round(s * n), n), n) for n in limits) for s in shares)
        return [rank for rank in dict.fromkeys(ranks) if rank != tuple(limits)]

    def _step(self, limit: int) -> int:
        step = self.multiple_of
        while step > 1 and limit // step < 4:
            step = max(1, step // 2)
        return step
