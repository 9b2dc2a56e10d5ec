"""A rank that keeps a share of the squared singular values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from fxdecomp.decompositions.problem import Spectrum
from fxdecomp.errors import PolicyError
from fxdecomp.ranks.spectral import SpectralRule


@final
@dataclass(frozen=True, slots=True)
class Energy(SpectralRule):
    """The lowest rank that keeps a share of the squared singular values of each unfolding.

    Attributes:
        share: In (0, 1].

    Example:
        >>> import fxdecomp
        >>> fxdecomp.Policy(method="svd", rank=fxdecomp.Energy(0.9)).rank
        Energy(share=0.9)
    """

    name: ClassVar[str] = "energy"
    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise PolicyError(f"a share of the energy lies in (0, 1], got {self.share!r}")

    def rank_of(self, spectrum: Spectrum) -> int:
        """The first index at which the cumulated squares reach the share; 0 for a zero weight."""
        values = spectrum.singular_values.double()
        if not len(values) or float(values[0]) == 0:
            return 0
        cumulated = (values / values[0]).square().cumsum(0)
        return int((cumulated < self.share * cumulated[-1]).sum()) + 1
