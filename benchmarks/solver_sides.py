"""What the solvers' benchmarks share: our side, timed, and its error."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fxdecomp.decompositions import Decomposition, decompose, problems_of
from fxdecomp.layers import LayerSpec

Save = Callable[[dict[str, Any]], None]


def relative_error(weight: Tensor, composed: Tensor) -> float:
    return float(torch.linalg.vector_norm(weight - composed) / torch.linalg.vector_norm(weight))


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def spec_of(weight: Tensor) -> LayerSpec:
    return LayerSpec(weight.shape[1], weight.shape[0], kernel=tuple(weight.shape[2:]))


def ours(method: Decomposition, weight: Tensor, rank: tuple[int, ...]) -> tuple[float, float]:
    """Seconds and error of fxdecomp; nothing is known of the weight beforehand."""
    spec = spec_of(weight)

    def run() -> Any:
        return decompose(method, problems_of(weight, spec), spec, rank, dtype=weight.dtype)

    known = torch.backends.opt_einsum.enabled
    torch.backends.opt_einsum.enabled = False
    seconds, chain = timed(run)
    torch.backends.opt_einsum.enabled = known
    return seconds, relative_error(weight, chain.composed_weight())
