"""Inputs drawn from a seed: after an example, or as pictures and signals are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

_CHANNELS = 4
"""More than so many channels are features, not colours."""

_LEAST_LENGTH = 8
"""Shorter axes have no spectrum to speak of."""

_UNLIKE = 0.2
"""Correlation of neighbours below which there is none: of 64 numbers and more, chance makes less."""

_COLOUR = 1 / 3
"""Spread of a channel about the brightness, as a share of that of the brightness."""


def drawn_like(inputs: Sequence[Tensor], seed: int) -> tuple[Tensor, ...]:
    """Random tensors of the same shapes, types and ranges.

    Floating-point tensors are normal with the mean and deviation of the example (deviation 1 where the
    example is constant); integers and booleans are drawn from the example's own entries, so that indices stay
    valid. Integers that ascend, such as positions and the offsets of bags, are drawn between the same ends,
    and ascend again.

    Args:
        inputs: The example inputs.
        seed: Seed of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for value in inputs:
        if not isinstance(value, Tensor) or not value.numel():
            drawn.append(value)
        elif value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            drawn.append(_spread_as(value, noise).to(value.device, value.dtype))
        elif _ascends(value):
            drawn.append(_ascending_like(value, generator))
        else:
            picks = torch.randint(value.numel(), (value.numel(),), generator=generator)
            drawn.append(value.flatten()[picks.to(value.device)].reshape(value.shape))
    return tuple(drawn)


def _spread_as(example: Tensor, noise: Tensor) -> Tensor:
    """Noise of variance 1 with the mean and deviation of an example, deviation 1 where that is constant."""
    known = example.detach().double().cpu()
    deviation = float(known.std()) if known.numel() > 1 else 0.0
    return float(known.mean()) + (deviation or 1.0) * noise


def _ascends(value: Tensor) -> bool:
    """Whether a row of integers is in order, and not one number only."""
    if value.dtype is torch.bool or value.is_complex() or value.ndim != 1 or value.numel() < 2:
        return False
    steps = value.long().diff()
    return bool((steps >= 0).all()) and bool((steps > 0).any())


def _ascending_like(value: Tensor, generator: torch.Generator) -> Tensor:
    """Integers between the same ends in the same order; no two alike where no two are."""
    first, last, count = int(value[0]), int(value[-1]), value.numel() - 2
    if bool((value.long().diff() > 0).all()):
        between = first + 1 + torch.randperm(max(last - first - 1, 0), generator=generator)[:count]
    else:
        between = torch.randint(first, last + 1, (count,), generator=generator)
    ends = torch.tensor([first, last])
    return torch.cat([ends, between]).sort().values.to(value.device, value.dtype)


def natural_like(example: Tensor, count: int, generator: torch.Generator) -> Float[Tensor, "count ..."]:
    """Noise with the spectrum of pictures or signals, and the mean, spread and range of an example.

    The power of natural pictures falls as `1 / f^2`, that of many signals as `1 / f` (Field 1987, J. Opt.
    Soc. Am. A 4; Voss and Clarke 1975, Nature 258). Channels of a picture share their brightness, and differ
    by a third as much. What is neither a picture nor a signal is drawn as white noise.

    Args:
        example: Pictures `[N, C, H, W]` or signals `[N, C, T]` of at most four channels, or anything
            `[N, ...]`.
        count: Number of inputs.
        generator: Draws.
    """
    shape = (count, *example.shape[1:])
    if _has_spectrum(example):
        noise = _coloured((count, 1, *example.shape[2:]), generator)
        if example.shape[1] > 1:
            noise = (noise + _COLOUR * _coloured(shape, generator)) / (1 + _COLOUR**2) ** 0.5
    else:
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    drawn = _spread_as(example, noise)
    least, most = float(example.detach().min()), float(example.detach().max())
    if least < most:
        drawn = drawn.clamp(least, most)
    return drawn.to(example.device, example.dtype)


def is_noise(value: Tensor) -> bool:
    """Whether a picture or a signal is one that nature does not make: its neighbours have nothing in common.

    Args:
        value: Floating-point inputs `[N, ...]`; of what is neither a picture nor a signal nothing is known.
    """
    if not _has_spectrum(value):
        return False
    centred = value.detach().double() - value.detach().double().mean()
    power = float(centred.square().mean())
    alike = float((centred[..., 1:] * centred[..., :-1]).mean())
    return abs(alike) <= _UNLIKE * power


def _has_spectrum(value: Tensor) -> bool:
    """Whether a tensor is laid out as pictures `[N, C, H, W]` or signals `[N, C, T]` are."""
    if value.ndim not in (3, 4) or not value.is_floating_point():
        return False
    return value.shape[1] <= _CHANNELS and min(value.shape[2:]) >= _LEAST_LENGTH


def _coloured(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Noise `[N, C, *size]` of variance 1 whose power falls as `1 / f^d` along its d last axes."""
    axes = tuple(range(2, len(shape)))
    grid = torch.meshgrid(*(torch.fft.fftfreq(n, dtype=torch.float64) for n in shape[2:]), indexing="ij")
    frequency = torch.stack(grid).square().sum(0).sqrt()
    frequency.view(-1)[0] = frequency.view(-1)[1:].min()  # means vary as the slowest waves do
    amplitude = frequency ** (-len(axes) / 2)
    amplitude /= amplitude.square().mean().sqrt()
    white = torch.randn(shape, generator=generator, dtype=torch.float64)
    filtered: Tensor = torch.fft.ifftn(torch.fft.fftn(white, dim=axes) * amplitude, dim=axes)
    return filtered.real
