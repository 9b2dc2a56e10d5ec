"""What a rank rule is: a choice of ranks for one layer from its spectra, its channels or neither."""

from __future__ import annotations

from abc import ABC, abstractmethod

from fxdecomp.decompositions.base import Decomposition
from fxdecomp.decompositions.problem import Problem
from fxdecomp.layers import LayerSpec


class RankRule(ABC):
    """Chooses a rank. Subclasses are final frozen dataclasses, validated when they are made."""

    @abstractmethod
    def choose(
        self, method: Decomposition, spec: LayerSpec, problems: tuple[Problem, ...]
    ) -> tuple[int, ...] | None:
        """The rank for one layer, or None where the rule finds nothing worth keeping.

        Args:
            method: The decomposition that the rank is for.
            spec: The whole layer, with its groups.
            problems: One per group; rules that look at the weight take the highest rank over the groups.
        """
