"""A rank that is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from fxdecomp.decompositions.base import Decomposition
from fxdecomp.decompositions.problem import Problem
from fxdecomp.errors import PolicyError
from fxdecomp.layers import LayerSpec
from fxdecomp.ranks.base import RankRule


@final
@dataclass(frozen=True, slots=True)
class Fixed(RankRule):
    """The same rank for every layer; with groups, of every group.

    Attributes:
        rank: One entry per rank of the method, or one number for all of them.

    Example:
        >>> import fxdecomp
        >>> fxdecomp.Policy(method="tucker2", rank=(64, 32)).rank
        Fixed(rank=(64, 32))
    """

    name: ClassVar[str] = "fixed"
    rank: int | tuple[int, ...]

    def __post_init__(self) -> None:
        entries = self.rank if isinstance(self.rank, tuple) else (self.rank,)
        if not entries or any(isinstance(r, bool) or not isinstance(r, int) or r < 1 for r in entries):
            raise PolicyError(f"a fixed rank is made of positive whole numbers, got {self.rank!r}")

    def choose(
        self, method: Decomposition, spec: LayerSpec, problems: tuple[Problem, ...]
    ) -> tuple[int, ...] | None:
        """The rank as given; whether it suits the layer is checked by `Decomposition.check_rank`."""
        if isinstance(self.rank, tuple):
            return self.rank
        return (self.rank,) * len(method.rank_limits(spec.per_group))
