"""`Problem`: one group's weight, the geometry that it belongs to, and the metric of its error.

Every spectrum is computed once for a site and shared by all rank rules, methods and candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from fxdecomp.calibration.moments import Moments
from fxdecomp.layers import LayerSpec


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """The singular values of one matrix, in descending order, and the matrix's shape."""

    singular_values: Float[Tensor, " n"]
    shape: tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """What a decomposition is asked to approximate.

    Attributes:
        weight: `[out, in, *kernel]`, float32 or float64, one group.
        spec: The geometry of that group (`groups == 1`).
        moments: Second moments of the layer's input patches; None for the Frobenius error of the weight.
    """

    weight: Float[Tensor, "out in *kernel"]
    spec: LayerSpec
    moments: Moments | None = None
    _cache: dict[str, object] = field(default_factory=dict, repr=False)

    def unfold(self, mode: int) -> Float[Tensor, "rows columns"]:
        """The unfolding along `mode` (0: outputs, 1: inputs), one row per index of that mode."""
        return self.weight.movedim(mode, 0).flatten(1)

    def left_svd(self, mode: int) -> tuple[Float[Tensor, "rows n"], Float[Tensor, " n"]]:
        """Left singular vectors (columns) and singular values of the unfolding along `mode`, descending."""
        key = f"left_svd.{mode}"
        if key not in self._cache:
            basis, values, _ = torch.linalg.svd(self.unfold(mode), full_matrices=False)
            self._cache[key] = (basis, values)
        return self._cache[key]  # type: ignore[return-value]
