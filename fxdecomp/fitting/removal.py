"""Channels of a layer's input are removed one by one, those that its output misses least.

With W the weight, C the covariance of the input patches and H its inverse over what is left, taking away
channel j, a block of as many columns as the kernel has taps, and making the best of the others loses

    L_j = tr W_j (H_jj)^-1 W_j^T            of  E ||y - y'||^2
    W  <-  W - W_j (H_jj)^-1 H_j.           H  <-  H - H_.j (H_jj)^-1 H_j.

The kept channels K then get the exact least squares of the removed ones D: `W_K + W_D C_DK (C_KK)^-1`.

Source: Hassibi and Stork 1993 (optimal brain surgeon); in blocks Frantar and Alistarh 2022, arXiv 2208.11580.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fxdecomp.calibration.moments import Moments
from fxdecomp.linalg.cholesky import cholesky

_COMPACT = 0.75
"""Removed rows are dropped from the working matrices when so few are left."""


@dataclass(frozen=True, slots=True, eq=False)
class Removal:
    """A layer that reads fewer channels.

    Attributes:
        kept: The channels that stay, ascending.
        weight: `[out, kept, *kernel]`, float64.
        shift: `[out]`, what the bias gains: the mean of the output stays.
        error: Squared error of the output as a share of its variance, by the moments.
    """

    kept: Int[Tensor, " kept"]
    weight: Float[Tensor, "out kept *kernel"]
    shift: Float[Tensor, " out"]
    error: float


@torch.no_grad()
def removal_errors(weight: Float[Tensor, "out in *kernel"], moments: Moments, least: int) -> list[float]:
    """The error for each number of channels that stay, from all of them down to `least`.

    They are those of one way down, on which each channel that goes stays away.
    """
    W = weight.double().reshape(*weight.shape[:2], -1)
    covariance = moments.dense().double().to(W.device)
    power = float(((W.flatten(1) @ covariance) * W.flatten(1)).sum())
    lost, errors = 0.0, [0.0]
    for _, loss in _way_down(W.clone(memory_format=torch.contiguous_format), covariance, least):
        lost += max(loss, 0.0)
        errors.append(min(lost / power, 1.0) if power > 0 else 0.0)
    return errors


@torch.no_grad()
def remove_channels(weight: Float[Tensor, "out in *kernel"], moments: Moments, keep: int) -> Removal:
    """Keep the channels with which a layer's output is fitted best.

    Args:
        weight: Of the layer, ungrouped.
        moments: Of its input patches.
        keep: How many channels stay, at least one.

    Cost: `d^3`, and `d^2 + out d` for each channel that goes, d the size of a patch; `out d` where no two
    inputs vary together.
    """
    return fitted_to(weight, moments, best_channels(weight, moments, keep))


@torch.no_grad()
def best_channels(
    weight: Float[Tensor, "out in *kernel"], moments: Moments, keep: int
) -> Int[Tensor, " keep"]:
    """Those channels, ascending; the cost is that of `remove_channels`."""
    W = weight.double().reshape(*weight.shape[:2], -1)
    covariance = moments.dense().double().to(W.device)
    if _vary_apart(covariance):  # then no channel makes up for another
        loss = (W.flatten(1).square() * covariance.diagonal()).sum(0).reshape(*W.shape[1:]).sum(1)
        return loss.argsort(descending=True, stable=True)[:keep].sort().values.cpu()
    given = W.clone(memory_format=torch.contiguous_format)
    gone = {channel for channel, _ in _way_down(given, covariance, keep)}
    return torch.tensor([channel for channel in range(W.shape[1]) if channel not in gone])


@torch.no_grad()
def fitted_to(
    weight: Float[Tensor, "out in *kernel"], moments: Moments, kept: Int[Tensor, " kept"]
) -> Removal:
    """The layer that reads some channels, as near as they allow.

    Args:
        weight: Of the layer, ungrouped.
        moments: Of its input patches.
        kept: The channels that stay, ascending.
    """
    W = weight.double().reshape(*weight.shape[:2], -1)
    outputs, channels, taps = W.shape
    covariance = moments.dense().double().to(W.device)
    columns = (kept[:, None] * taps + torch.arange(taps)).flatten().to(W.device)
    gone = torch.ones(channels * taps, dtype=torch.bool, device=W.device)
    gone[columns] = False
    flat = W.flatten(1)
    new = flat[:, columns]
    if bool(gone.any()) and not _vary_apart(covariance):
        lower = cholesky(covariance[columns][:, columns])
        crossed = covariance[columns][:, gone] @ flat[:, gone].T
        new = new + torch.cholesky_solve(crossed, lower).T
    rest = flat.clone()
    rest[:, columns] -= new
    power = float(((flat @ covariance) * flat).sum())
    lost = float(((rest @ covariance) * rest).sum())
    shape = (outputs, len(kept), *weight.shape[2:])
    shift = rest @ moments.mean.double().to(W.device)
    return Removal(kept, new.reshape(shape), shift, max(lost, 0.0) / power if power > 0 else 0.0)


def _vary_apart(covariance: Float[Tensor, "d d"]) -> bool:
    return torch.equal(covariance, torch.diag(covariance.diagonal()))


def _way_down(
    W: Float[Tensor, "out n taps"], covariance: Float[Tensor, "d d"], keep: int
) -> Iterator[tuple[int, float]]:
    """The channels that go, one by one, with what is lost by each; W is changed."""
    taps = W.shape[2]
    alive = torch.arange(W.shape[1], device=W.device)
    left = torch.ones_like(alive, dtype=torch.bool)
    H = torch.cholesky_inverse(cholesky(covariance))
    one = torch.eye(taps, dtype=H.dtype, device=H.device)
    for _ in range(len(alive) - keep):
        blocks = H.reshape(len(alive), taps, len(alive), taps).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        inverse = torch.linalg.inv(torch.where(left[:, None, None], blocks, one))
        loss = ((W.transpose(0, 1) @ inverse) * W.transpose(0, 1)).sum((1, 2))
        worst = int(torch.where(left, loss, torch.inf).argmin())
        span = slice(worst * taps, (worst + 1) * taps)
        gain = inverse[worst] @ H[span]
        W.view(len(W), -1).addmm_(W[:, worst].clone(), gain, alpha=-1)
        H.addmm_(H[:, span].clone(), gain, alpha=-1)
        left[worst] = False
        yield int(alive[worst]), float(loss[worst])
        if int(left.sum()) < _COMPACT * len(left):
            columns = left.repeat_interleave(taps)
            alive, W, H = alive[left], W[:, left].contiguous(), H[columns][:, columns]
            left = torch.ones_like(alive, dtype=torch.bool)
