"""Moments of every awkward kind, for the property tests."""

from __future__ import annotations

import torch
from torch import Tensor

from fxdecomp.calibration import Moments
from fxdecomp.calibration.moments import MomentsSum
from fxdecomp.layers import LayerSpec

KINDS = ("correlated", "dead channels", "duplicated channels", "few samples", "constant", "white")


def draw_moments(spec: LayerSpec, kind: str, seed: int) -> Moments:
    """Moments of one group's patches."""
    shape = spec.per_group.weight_shape[1:]
    d = torch.Size(shape).numel()
    if kind == "white":
        return Moments(2.5 * torch.eye(d, dtype=torch.float64), torch.ones(d, dtype=torch.float64), 100)
    rows = draw_rows(shape, 3 if kind == "few samples" else 4 * d + 10, seed)
    channels = rows.unflatten(1, shape).movedim(1, 0)
    if kind == "dead channels":
        channels[: (shape[0] + 1) // 2] = 0
    elif kind == "duplicated channels":
        channels[:] = channels[:1].clone()
    elif kind == "constant":
        channels[:] = 1.5
    total = MomentsSum()
    total.add(rows)
    return total.moments()


def draw_rows(shape: tuple[int, ...], count: int, seed: int) -> Tensor:
    """Correlated rows of uneven scale about a mean that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    d = torch.Size(shape).numel()
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64) * torch.logspace(
        0, -3, d, dtype=torch.float64
    )
    return torch.randn(count, d, generator=generator, dtype=torch.float64) @ mix.T + 3


def output_error(weight: Tensor, composed: Tensor, moments: Moments) -> float:
    """Written out: `tr (W - W') Sigma (W - W')^T / tr W Sigma W^T`."""
    root = moments.covariance if moments.is_root else None
    sigma = moments.covariance if root is None else root.T @ root
    rest, whole = (weight - composed).flatten(1), weight.flatten(1)
    power = float(torch.trace(whole @ sigma @ whole.T))
    return float(torch.trace(rest @ sigma @ rest.T)) / power if power > 0 else 0.0
