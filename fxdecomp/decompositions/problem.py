"""`Problem`: one group's weight, the geometry that it belongs to, and the metric of its error.

Every spectrum is computed once for a site and shared by all rank rules, methods and candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from fxdecomp.calibration.moments import WIDE, Moments
from fxdecomp.decompositions.whitening import whitened_svd
from fxdecomp.fitting.metric import Metric
from fxdecomp.layers import LayerSpec
from fxdecomp.linalg.factoring import balanced, left_svd, singular_values
from fxdecomp.linalg.range_finder import LARGE, leading_left

Made = TypeVar("Made")

_ROWS = 512
"""Outputs of a layer that are compared at one time."""

_BASES = 4
"""The bases of a weight's unfoldings take about so many times its room."""


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
    _cache: dict[tuple[int, ...], tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)
    _spectra: dict[tuple[int, ...], Spectrum] = field(default_factory=dict, repr=False)
    _made: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def size_bytes(self) -> int:
        """Memory of the moments and their metric, or of the weight and its bases where there are none."""
        if self.moments is None:
            return _BASES * self.weight.numel() * self.weight.element_size()
        known = self.moments.covariance
        has_none = self.spec.is_pointwise or self._is_wide
        metric = 0 if has_none else 2 * known.shape[1] ** 2 * self.weight.element_size()
        return known.numel() * known.element_size() + metric

    @property
    def _is_wide(self) -> bool:
        return self.moments is not None and self.moments.covariance.shape[1] > WIDE

    def rest(self) -> None:
        """Forget a metric that takes more room than time: it is made again when it is asked for."""
        if self._is_wide:
            self._made.pop("metric", None)

    def state(self) -> dict[str, Any]:
        """What is known besides weight and geometry, as tensors and plain data; the metric is made again."""
        moments = self.moments
        return {
            "moments": None
            if moments is None
            else (moments.covariance, moments.mean, moments.count, moments.ridge),
            "bases": [(modes, *found) for modes, found in self._cache.items()],
            "spectra": [(modes, each.singular_values, each.shape) for modes, each in self._spectra.items()],
        }

    def with_state(self, state: Mapping[str, Any]) -> Problem:
        """The same problem with what `state` gave."""
        moments = None if state["moments"] is None else Moments(*state["moments"])
        found = replace(self, moments=moments, _cache={}, _spectra={}, _made={})
        for modes, basis, values in state["bases"]:
            found._cache[tuple(modes)] = basis, values
        for modes, values, shape in state["spectra"]:
            found._spectra[tuple(modes)] = Spectrum(values, tuple(shape))
        return found

    def once(self, name: str, make: Callable[[], Made]) -> Made:
        """What was made under a name, for all methods and ranks."""
        if name not in self._made:
            self._made[name] = make()
        found: Made = self._made[name]
        return found

    @property
    def bare(self) -> Problem:
        """The same weight in the Frobenius metric; the problem itself where it has no moments."""
        return self if self.moments is None else self.once("bare", lambda: Problem(self.weight, self.spec))

    @property
    def metric(self) -> Metric:
        """That of the moments, which there must be; made once for all methods and ranks."""
        moments = self.moments
        assert moments is not None
        return self.once("metric", lambda: Metric.of(self.weight, moments, power=self.power))

    def unfold(self, *modes: int) -> Float[Tensor, "rows columns"]:
        """The matrix whose rows are indexed by `modes` (0: outputs, 1: inputs, 2 and up: the kernel's axes).

        Rows run over `modes` in the order given, columns over the other modes in ascending order.
        """
        others = [mode for mode in range(self.weight.ndim) if mode not in modes]
        return self.weight.permute(*modes, *others).flatten(0, len(modes) - 1).flatten(1)

    def left_svd(self, *modes: int) -> tuple[Float[Tensor, "rows n"], Float[Tensor, " n"]]:
        """Left singular vectors (columns) and singular values of `unfold(*modes)`, descending.

        With moments, those of the unfolding whitened on the side of the inputs; the vectors are then
        orthonormal, and span what the best approximation keeps (see `whitening`).
        """
        if modes not in self._cache:
            self._cache[modes] = (
                left_svd(self.unfold(*modes))
                if self.moments is None
                else whitened_svd(self.unfold(*modes), tuple(self.weight.shape), self.moments, modes)
            )
        return self._cache[modes]

    def leading(self, rank: int, *modes: int) -> Float[Tensor, "rows r"]:
        """The leading left singular vectors of `unfold(*modes)`, `min(rank, *its shape)` of them.

        Of a large matrix they are found without the others, where the rank is small against it.
        """
        if modes not in self._cache and self.moments is None:
            found = leading_left(self.unfold(*modes), rank)
            if found is not None:
                return found
        return self.left_svd(*modes)[0][:, :rank]

    def spectrum(self, *modes: int) -> Spectrum:
        """The singular values of `unfold(*modes)`, with that matrix's shape."""
        if modes not in self._spectra:
            matrix = self.unfold(*modes)
            shape = matrix.shape[0], matrix.shape[1]
            alone = modes not in self._cache and self.moments is None and min(shape) >= LARGE
            values = singular_values(matrix) if alone else self.left_svd(*modes)[1]
            self._spectra[modes] = Spectrum(values, shape)
        return self._spectra[modes]

    def truncated(self, rank: int, *modes: int) -> tuple[Float[Tensor, "rows r"], Float[Tensor, "r columns"]]:
        """The best approximation of `unfold(*modes)` of a rank, as two factors of even norms."""
        return balanced(self.leading(rank, *modes), self.unfold(*modes))

    def lost(self, composed: Float[Tensor, "out in *kernel"]) -> float:
        """The squared error of an approximation; with moments `tr (W - W') Sigma (W - W')^T`."""
        parts = zip(torch.split(self.weight, _ROWS), torch.split(composed, _ROWS), strict=True)
        return math.fsum(self._square(wanted - got.to(wanted.dtype)) for wanted, got in parts)

    @property
    def power(self) -> float:
        """What that error is a share of: `tr W Sigma W^T`, or `||W||^2`."""
        return self.once("power", lambda: self._square(self.weight))

    def _square(self, kernel: Tensor) -> float:
        if self.moments is None:
            return float(kernel.double().square().sum())
        return max(self.moments.output_variance(kernel.flatten(1)), 0.0)
