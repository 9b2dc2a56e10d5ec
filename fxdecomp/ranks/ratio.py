"""A rank that is a share of the channels."""

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
class Ratio(RankRule):
    """A share of the channels that a method counts (`Decomposition.rank_channels`), per group.

    Those are the output and input channels for `tucker2`, the output channels for `channel_svd`, the smaller
    of both for `svd` and `spatial_svd`, the larger of both for `cp` and `cp3`. The rank is rounded to the
    nearest multiple of `multiple_of`, is at least one multiple, and never exceeds the method's limits: there
    it is the largest multiple within them, and the limit itself only where not one multiple fits.

    Attributes:
        share: In (0, 1].
        multiple_of: Ranks that are multiples of 16 waste least on vector units.

    Example:
        >>> import fxdecomp
        >>> fxdecomp.Ratio(1 / 3, multiple_of=16).multiple_of
        16
    """

    name: ClassVar[str] = "ratio"
    share: float
    multiple_of: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise PolicyError(f"a share of the channels lies in (0, 1], got {self.share!r}")
        if type(self.multiple_of) is not int or self.multiple_of < 1:
            raise PolicyError(f"multiple_of is a whole number from 1 on, got {self.multiple_of!r}")

    def choose(
        self, method: Decomposition, spec: LayerSpec, problems: tuple[Problem, ...]
    ) -> tuple[int, ...] | None:
        """The rounded share of each channel count."""
        layer = spec.per_group
        step = self.multiple_of
        wanted = (max(step, round(self.share * n / step) * step) for n in method.rank_channels(layer))
        limits = method.rank_limits(layer)
        return tuple(min(r, limit // step * step or limit) for r, limit in zip(wanted, limits, strict=True))
