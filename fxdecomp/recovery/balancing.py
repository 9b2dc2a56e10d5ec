"""Even out the factors of a chain without changing what it computes.

Between two stages, channel r may be scaled by s on the way out and by 1 / s on the way in. A decomposition
fixes the product only, and CP in particular leaves factors whose sizes differ by orders of magnitude: there
no single step size suits all stages. Here s is chosen so that both sides have the same norm,

    s_r^2 = ||in-weights of r in the next stage|| / ||out-weights of r in this stage||,

pair by pair, over a few sweeps.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_SWEEPS = 8


@torch.no_grad()
def balance(stages: Sequence[nn.Module]) -> None:
    """Balance the stages of a chain in place.

    Args:
        stages: `nn.Linear` or convolutions in order, each the only reader of the one before.
    """
    recurs = any(isinstance(stage, nn.RNNBase) for stage in stages)  # behind one stage, even as factorised
    for _ in range(_SWEEPS if len(stages) > 1 and not recurs else 0):
        for first, second in itertools.pairwise(stages):
            out, into = _channels(first), _channels(second)
            have, want = _norms(out, 0), _norms(into, 1)
            usable = (have > 0) & (want > 0) & torch.isfinite(have) & torch.isfinite(want)
            scale = torch.where(usable, (want / have).sqrt(), torch.ones_like(have)).to(out.dtype)
            _scale(out, 0, scale)
            _scale(into, 1, 1 / scale)
            if isinstance(first.bias, Tensor):
                first.bias.mul_(scale.flatten())


def _channels(module: nn.Module) -> Tensor:
    """The weight as a view `[groups, out // groups, in // groups, -1]`."""
    weight = module.weight
    assert isinstance(weight, nn.Parameter)  # narrows the declared Tensor | Module
    if not weight.is_contiguous():
        weight.data = weight.data.contiguous()
    groups = int(getattr(module, "groups", 1))
    view = weight.view(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return view.transpose(1, 2) if getattr(module, "transposed", False) else view


def _norms(weight: Tensor, side: int) -> Tensor:
    """The norm of each output (side 0) or input (side 1) channel, flat, in channel order."""
    axes = (2, 3) if side == 0 else (1, 3)
    norms: Tensor = torch.linalg.vector_norm(weight.double(), dim=axes)
    return norms.flatten()


def _scale(weight: Tensor, side: int, scale: Tensor) -> None:
    shape = (weight.shape[0], -1, 1, 1) if side == 0 else (weight.shape[0], 1, -1, 1)
    weight.mul_(scale.reshape(shape))
