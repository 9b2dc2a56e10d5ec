"""How well two values agree: `Agreement`, and the tolerances that it is judged by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxdecomp.errors import ParityError

TOLERANCES: Mapping[torch.dtype, float] = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}
"""Largest allowed difference of an output by the lowest precision on the way to it; outputs of types that are
not listed must be equal."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well one output agrees for one input, at one optimisation level.

    Attributes:
        output: Name of the output in the file.
        optimised: Whether ONNX Runtime's graph optimisations were on.
        shapes: Shapes of the inputs.
        max_absolute: Largest `|a - b|`.
        max_relative: Largest `|a - b| / max(|a|, rms(a))`.
    """

    output: str
    optimised: bool
    shapes: tuple[tuple[int, ...], ...]
    max_absolute: float
    max_relative: float


def agree(
    name: str,
    wanted: Any,
    got: Any,
    *,
    lowest: torch.dtype | None = None,
    least: float = 0.0,
    tolerance: float | None = None,
    optimised: bool = False,
    shapes: tuple[tuple[int, ...], ...] = (),
) -> Agreement:
    """Compare what PyTorch gives for one output with what ONNX Runtime gives.

    Args:
        name: Name of the output.
        wanted: PyTorch's value: a tensor, or of a file's graph text or nothing.
        got: ONNX Runtime's.
        lowest: The coarsest type on the way to it.
        least: A tolerance that is allowed whatever the types.
        tolerance: One in the place of those of the types; what must be equal still must.
        optimised: Whether ONNX Runtime's optimisations were on.
        shapes: Shapes of the inputs.

    Raises:
        ParityError: They differ; says where and by how much.
    """
    state = "on" if optimised else "off"
    where = f"output {name!r} with ONNX Runtime's optimisations {state}, inputs {shapes}"
    if not isinstance(wanted, Tensor) or not isinstance(got, Tensor):
        if not np.array_equal(np.asarray(wanted), np.asarray(got)):
            raise ParityError(f"{where}: PyTorch gives {str(wanted)[:80]}, ONNX Runtime {str(got)[:80]}")
        return Agreement(name, optimised, shapes, 0.0, 0.0)
    if got.dtype != wanted.dtype:
        raise ParityError(f"{where}: type {_word(got.dtype)}, PyTorch gives {_word(wanted.dtype)}")
    a, b = _wide(wanted), _wide(got)
    if a.shape != b.shape:
        raise ParityError(f"{where}: shape {b.shape}, PyTorch gives {a.shape}")
    if not a.size:
        return Agreement(name, optimised, shapes, 0.0, 0.0)
    allowed, decisive = TOLERANCES.get(wanted.dtype, 0.0), wanted.dtype
    if allowed and lowest is not None and TOLERANCES[lowest] > allowed:
        allowed, decisive = TOLERANCES[lowest], lowest
    allowed = max(allowed if tolerance is None or not allowed else tolerance, least)
    absolute, relative = _differences(a, b)
    worst = np.unravel_index(int(relative.argmax()), relative.shape)
    if relative[worst] > allowed:
        raise ParityError(
            f"{where}: at index {tuple(int(i) for i in worst)} PyTorch gives {a[worst]:.9g}, ONNX Runtime "
            f"{b[worst]:.9g}; largest absolute difference {absolute.max():.3g}, largest relative difference "
            f"{relative[worst]:.3g}, tolerance {allowed:g} for {_word(decisive)}; "
            f"{float((relative > allowed).mean()):.2%} of the elements differ"
        )
    return Agreement(name, optimised, shapes, float(absolute.max()), float(relative.max()))


def differ(wanted: Any, got: Any) -> bool:
    """Whether one value of a graph is another than the file's, beyond what `TOLERANCES` allow."""
    a, b = pytree.tree_leaves(wanted), pytree.tree_leaves(got)
    if len(a) != len(b):
        return True
    try:
        for x, y in zip(a, b, strict=True):
            agree("", x, y)
    except ParityError:
        return True
    return False


def distance(wanted: Any, got: Any) -> float:
    """The largest relative difference of two tensors; 0 where they are of other shapes or no tensors."""
    if not (isinstance(wanted, Tensor) and isinstance(got, Tensor)) or wanted.shape != got.shape:
        return 0.0
    a, b = _wide(wanted), _wide(got)
    return float(_differences(a, b)[1].max()) if a.size else 0.0


def _wide(value: Tensor) -> Any:
    return value.detach().cpu().to(torch.complex128 if value.is_complex() else torch.float64).numpy()


def _differences(a: Any, b: Any) -> tuple[Any, Any]:
    """`|a - b|`, and the same relative to `max(|a|, rms(a))`, by element."""
    finite = np.isfinite(a)
    rms = math.sqrt(float(np.mean(np.square(np.abs(a[finite]))))) if finite.any() else 0.0
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        absolute = np.where(same, 0.0, np.abs(a - b))
        relative = np.where(same, 0.0, absolute / np.maximum(np.abs(a), rms))
    # A difference with NaN or infinity on one side only is infinite, so that it can never pass.
    absolute, relative = (np.nan_to_num(x, nan=np.inf, posinf=np.inf) for x in (absolute, relative))
    return absolute, relative


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
