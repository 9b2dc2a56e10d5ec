"""How far two outputs of a network are apart, whatever containers and types they come in.

The error of an element is `|a - b| / max(|a|, s)`, where `s` is the largest wanted value, since the rounding
of a deep network goes with its large activations. Only elements that differ count towards `s`, and `s` is
never far above their median: a mask's -1e9 must not make room for differences elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from math import inf

import torch
import torch.utils._pytree as pytree
from torch import Tensor

_OUTLIER = 100.0
"""The scale is at most so many times the median; beyond are the values of an additive mask."""
_FLIPS = 0.01
"""Share of whole numbers that may differ by any amount: a rounding flips the argmax of two near equals."""


def tensor_outputs(outputs: object) -> Iterator[Tensor]:
    """The tensors of a nested structure, in order; dataclasses are looked into too."""
    for leaf in pytree.tree_leaves(outputs):
        if isinstance(leaf, Tensor):
            yield leaf
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            yield from tensor_outputs([getattr(leaf, field.name) for field in fields(leaf)])


def difference(wanted: object, got: object) -> float:
    """The largest relative difference, the worst of all outputs.

    Returns:
        0 for equal outputs, infinity where their number, shapes, types or infinities differ. Tensors without
        values (meta), and outputs in containers that torch does not look into, are not compared.
    """
    ones, others = list(tensor_outputs(wanted)), list(tensor_outputs(got))
    if len(ones) != len(others):
        return inf
    return max((_difference(one, other) for one, other in zip(ones, others, strict=True)), default=0.0)


def _difference(wanted: Tensor, got: Tensor) -> float:
    if wanted.shape != got.shape or wanted.dtype != got.dtype:
        return inf
    if wanted.is_meta or got.is_meta or wanted.layout is not torch.strided or wanted.is_quantized:
        return 0.0
    one, other = _as_doubles(wanted), _as_doubles(got)
    differs = (one != other) & ~(one.isnan() & other.isnan())
    if (
        not wanted.is_floating_point()
        and not wanted.is_complex()
        and differs.sum() <= _FLIPS * differs.numel()
    ):
        return 0.0
    return _largest(one[differs], other[differs])


def _largest(wanted: Tensor, got: Tensor) -> float:
    """The largest relative difference of elements that all differ."""
    if not wanted.numel():
        return 0.0
    if not bool((wanted.isfinite() & got.isfinite()).all()):
        return inf
    size = wanted.abs().clamp_min(torch.finfo(torch.float32).tiny)
    typical = size[wanted != 0].median() if bool(wanted.any()) else size.min()
    scale = size.max().minimum(_OUTLIER * typical)
    return float(((wanted - got).abs() / size.maximum(scale)).max())


def _as_doubles(values: Tensor) -> Tensor:
    return (torch.view_as_real(values.resolve_conj()) if values.is_complex() else values).double()
