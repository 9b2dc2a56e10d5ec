"""What rules that look at singular values share."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from fxdecomp.decompositions.base import Decomposition
from fxdecomp.decompositions.problem import Problem, Spectrum
from fxdecomp.layers import LayerSpec
from fxdecomp.ranks.base import RankRule


@dataclass(frozen=True, slots=True)
class SpectralRule(RankRule):
    """A rule that reads one number off each spectrum of a method."""

    @abstractmethod
    def rank_of(self, spectrum: Spectrum) -> int:
        """The number of singular values to keep, 0 where none is worth it."""

    def choose(
        self, method: Decomposition, spec: LayerSpec, problems: tuple[Problem, ...]
    ) -> tuple[int, ...] | None:
        """The highest number over the groups for each spectrum, combined into the method's ranks.

        Returns:
            The rank within the method's limits, or None where a rank comes to nothing.
        """
        by_group = [[self.rank_of(spectrum) for spectrum in method.spectra(problem)] for problem in problems]
        rank = method.combine_ranks(tuple(map(max, zip(*by_group, strict=True))))
        limits = method.rank_limits(spec.per_group)
        if min(rank) < 1:
            return None
        return tuple(min(r, limit) for r, limit in zip(rank, limits, strict=True))
