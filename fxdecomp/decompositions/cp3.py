"""Canonical polyadic decomposition with the spatial axes left together.

    W[t, s, y, x] ~ sum_r  A[t, r] B[s, r] E[y, x, r]

    x --pointwise_in: S -> R--> --depthwise: k x k--> --pointwise_out: R -> T--> y

A little dearer than `cp` at the same rank and never less accurate; one stage fewer. Source: as for `cp`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from fxdecomp.decompositions.cp import CanonicalPolyadic
from fxdecomp.decompositions.spatial import SpatialStep
from fxdecomp.layers import LayerSpec


@final
@dataclass(frozen=True, slots=True)
class CP3(CanonicalPolyadic):
    """CP with a single depthwise stage over the whole kernel, rank `(R,)`."""

    name: ClassVar[str] = "cp3"

    def steps(self, spec: LayerSpec) -> tuple[SpatialStep, ...]:
        """All axes at once."""
        return (SpatialStep("depthwise", tuple(range(spec.ndim))),)
