"""Models that the command-line tests name as `tests.cli_models:callable`."""

from __future__ import annotations

import torch
from torch import nn


def small_net() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, groups=16),
        nn.Flatten(),
        nn.Linear(1152, 8),
    )
    return net, torch.randn(1, 3, 8, 8)


def without_inputs() -> nn.Module:
    return nn.Linear(4, 2)


def failing() -> nn.Module:
    raise RuntimeError("weights are missing")


def not_a_module() -> int:
    return 3


def batches() -> list[torch.Tensor]:
    return [torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


def quality(network: nn.Module) -> float:
    """Fewer parameters are a little better."""
    return -1e-9 * sum(parameter.numel() for parameter in network.parameters())


def size(network: nn.Module) -> float:
    """The more parameters, the better."""
    return -quality(network)


def mean_output(network: nn.Module) -> float:
    """Of what the network gives, whatever it is made of: a file has no parameters."""
    with torch.no_grad():
        return float(torch.cat([network(batch) for batch in batches()]).mean())


def first_weight(network: nn.Module) -> float:
    """Of parameters, which a file has not."""
    return float(next(network.parameters()).detach().flatten()[0])
