"""How far a network's outputs are from the original's: the error to train on, the decisions to judge by.

The error of an output is its mean squared deviation over the variance of the original's output, so that
outputs of any unit count alike and a network that always says the mean has error 1. It looks at every
position alike. A Kullback-Leibler divergence does not: where most positions are sure of one class, as the
blank of a CTC recogniser is, it can fall while the few positions that carry the answer get worse. An error
alone can still be fooled, so states are accepted by their *decisions* too: see `Measure`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxdecomp.calibration.distance import decisions_of
from fxdecomp.errors import RecoveryError
from fxdecomp.graphs.inputs import float_leaves

Agreement = Callable[[Any, Any], Tensor]
"""Outputs and the original's outputs to one number in [0, 1] per example, `[N]`."""


@dataclass(frozen=True, slots=True)
class Measure:
    """How well a network stands in for the original, on data that it was not trained on.

    Attributes:
        error: Mean squared deviation of the outputs over their variance, plus the weighted task loss, if any.
        examples: Share of the examples on which both networks decide the same, 1 where nothing is decided.
        decisions: Share of the single decisions that are the same, 1 where nothing is decided.
        count: Number of examples that were compared, 0 where nothing is decided.
    """

    error: float
    examples: float = 1.0
    decisions: float = 1.0
    count: int = 0

    @property
    def risk(self) -> float:
        """The error times the share of examples that differ, with one more that does, for what was not seen.

        The share alone is coarse on few examples, and the error alone does not know what it costs.
        """
        return max(self.error, 0.0) * (1 - self.examples + 1 / (self.count + 1))

    def is_finite(self) -> bool:
        """Whether the network gave numbers."""
        return math.isfinite(self.error)

    def no_worse_than(self, other: Measure) -> bool:
        """Whether nothing that is measured got worse."""
        return (
            self.is_finite()
            and self.error <= other.error
            and self.examples >= other.examples
            and self.decisions >= other.decisions
        )

    def better_than(self, other: Measure) -> bool:
        """Whether the risk is less; where it is the same, the error."""
        return (self.risk, self.error) < (other.risk, other.error)

    def __str__(self) -> str:
        return (
            f"error {self.error:.4f}, examples alike {self.examples:.4f}, "
            f"decisions alike {self.decisions:.4f}"
        )


def relative_error(outputs: Any, wanted: Any, variances: Tensor) -> Tensor:
    """`mean((y - y')^2) / var(y)`, averaged over the tensors of the output.

    Args:
        outputs: The outputs y' of any structure.
        wanted: The original's outputs y, of the same structure.
        variances: `var(y)` of each tensor, `[tensors]`.

    Raises:
        RecoveryError: The outputs do not match in number or shape.
    """
    got, targets = float_leaves(outputs), float_leaves(wanted)
    if [t.shape for t in got] != [t.shape for t in targets]:
        raise RecoveryError(
            f"small returns tensors {[tuple(t.shape) for t in got]}, "
            f"the original {[tuple(t.shape) for t in targets]}; "
            "recover needs the network that small was made from"
        )
    errors = [(a.float() - b.float()).square().mean() for a, b in zip(got, targets, strict=True)]
    return (torch.stack(errors) / variances.to(errors[0])).mean()


def moments_of(outputs: Any) -> Tensor:
    """Count, sum and sum of squares of each tensor of an output, `[tensors, 3]` in float64."""
    rows = []
    for leaf in float_leaves(outputs):
        exact = leaf.detach().double()
        rows.append(torch.stack([exact.new_tensor(exact.numel()), exact.sum(), exact.square().sum()]))
    if not rows:
        raise RecoveryError("the network returns no floating-point tensor; there is nothing to compare")
    return torch.stack(rows)


def variances_of(moments: Tensor) -> Tensor:
    """The variance of each tensor from its moments, `[tensors]`; its mean square, if it is constant."""
    count, total, squares = moments.unbind(1)
    variance = squares / count - (total / count).square()
    square = squares / count
    return torch.where(variance > 1e-8 * square, variance, square.clamp_min(1e-30))


def agreement_sums(outputs: Any, wanted: Any) -> Tensor:
    """Examples, examples alike, decisions, decisions alike: `[4]` in float64.

    An example is alike when each of its rows of decisions is, after repeats are merged: a class that starts
    one position earlier or later, as in CTC, is the same answer.
    """
    alike, counts = None, torch.zeros(4, dtype=torch.float64)
    for got, target in zip(float_leaves(outputs), float_leaves(wanted), strict=True):
        ours, theirs = decisions_of(got), decisions_of(target)
        if ours is None or theirs is None:
            continue
        rows = zip(ours.cpu(), theirs.cpu(), strict=True)
        same = torch.tensor([_merged(a) == _merged(b) for a, b in rows])
        alike = same if alike is None or len(same) != len(alike) else alike & same
        counts[2] += ours.numel()
        counts[3] += float((ours == theirs).sum())
    if alike is not None:
        counts[0], counts[1] = len(alike), float(alike.sum())
    return counts


def _merged(row: Tensor) -> list[int]:
    merged: list[int] = torch.unique_consecutive(row).tolist()
    return merged
