"""How much may be lost on inputs that were not judged on, where a metric gives one score an input.

A one-sided bound of Student's for the mean of the losses `d_i = original_i - network_i`, of the n inputs that
were judged and of two more, at which all there is to lose is lost:

    sum d / (n + 2) + t(n + 1) * s / sqrt(n + 2)

The two stand for what n inputs cannot show: without them, no loss at all on ten inputs would promise none
anywhere. Added observations as in Agresti and Coull 1998 (The American Statistician 52).
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVEL = 0.05
"""How often a search may accept a network that loses more than it allows, on inputs like those judged on."""

_ADDED = 2
_MOST = 10**7


def largest_loss(original: Tensor, network: Tensor, doubt: float) -> float:
    """What the mean loss on other inputs is below, but for a share `doubt` of all choices of inputs.

    Args:
        original: Scores of the original network, [N].
        network: Scores of another on the same inputs, [N].
        doubt: A share in (0, 0.5).

    Example:
        >>> right = torch.ones(1000)
        >>> print(f"{largest_loss(right, right, 0.05):.4f}")
        0.0043
    """
    from scipy.stats import ttest_1samp

    all_there_is = torch.maximum(original.abs().max(), network.abs().max())
    lost = torch.cat([original - network, all_there_is.expand(_ADDED)])
    return float(ttest_1samp(lost.numpy(), 0.0, alternative="less").confidence_interval(1 - doubt).high)


def least_count(original: Tensor, allowed: float, doubt: float) -> int | None:
    """How many inputs show that no more than `allowed` is lost, where nothing is; None where too many.

    Args:
        original: Scores of the original network, [N], that tell how much there is to lose.
        allowed: The mean loss that is allowed.
        doubt: A share in (0, 0.5).

    Example:
        >>> least_count(torch.ones(5), 0.01, 0.05)
        431
    """
    from scipy.stats import t

    low, high = 1, _MOST
    most = float(original.abs().max())

    def shown(count: int) -> bool:
        total = count + _ADDED
        mean = _ADDED / total
        spread = (mean * (1 - mean) / (total - 1)) ** 0.5
        return most * float(mean + t.ppf(1 - doubt, total - 1) * spread) <= allowed

    if not shown(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if shown(middle) else (middle + 1, high)
    return low
