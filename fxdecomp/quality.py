"""`Quality`: how far a network is from the original, end to end, and on which inputs that was measured.

This is not parity: a file has parity with a network where it computes what that network computes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

LEAST_AGREEMENT = 0.9
"""The agreement below which a network is warned of, unless the caller says otherwise."""

_FEW_DECISIONS = 8
"""Fewer decisions, all alike, say nothing of others,"""
_HARMLESS = 0.1
"""unless the relative error is below this: on digits, above it up to a fifth of the decisions went."""
_UNSURE = (
    "was compared on {}: too few to say how many decisions an error of {:.0%} costs; give more calibration "
    "inputs, or a metric"
)


@dataclass(frozen=True, slots=True)
class OutputDistance:
    """How far one output is from the original's.

    Attributes:
        name: `output`, or its place among several, such as `output['boxes']`.
        relative_error: The root of `E||y - y'||^2 / E||y - mean(y)||^2` over all numbers of the output: 0
            for the original itself, 1 for one that always gives the mean. Of an output that does not vary,
            over its squares. What is not finite in the original does not count, elsewhere it counts as zero.
        same_decisions: Share of the decisions (`argmax` over the last axis) that are the original's, None
            where the output does not look like scores of classes.
        decisions: How many were compared.

    Example:
        >>> OutputDistance("output", 0.3).agreement
        0.91
    """

    name: str
    relative_error: float
    same_decisions: float | None = None
    decisions: int = 0

    def __post_init__(self) -> None:
        numbers = [self.relative_error, *([] if self.same_decisions is None else [self.same_decisions])]
        if not all(isinstance(number, int | float) and 0 <= number < math.inf for number in numbers):
            raise ValueError(f"distances are numbers from 0 on, got {numbers}")

    @property
    def agreement(self) -> float:
        """The lesser of `1 - relative_error^2` and the share of decisions alike; never below 0."""
        kept = max(0.0, 1.0 - self.relative_error**2)
        return kept if self.same_decisions is None else min(kept, self.same_decisions)

    @property
    def is_uncertain(self) -> bool:
        """Whether the error may cost decisions of which too few were compared to show it."""
        return 0 < self.decisions < _FEW_DECISIONS and self.relative_error > _HARMLESS


@dataclass(frozen=True, slots=True)
class Quality:
    """The distance of a network to the original.

    Attributes:
        inputs: On what it was measured, in words.
        count: Number of inputs.
        held_out: Whether nothing was fitted to them.
        outputs: One entry per floating-point output.
        precision: Of the network that was measured: `fp32`, `int8`, `fp16`, or another type's name.
        costly: The layers that lost most, the worst first.
        least_agreement: The agreement below which there is a warning.

    Example:
        >>> import torch, fxdecomp
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32))
        >>> gm = fxdecomp.trace(model, torch.randn(4, 64))
        >>> small = fxdecomp.transform(gm, fxdecomp.Policy(method="svd", rank=4))
        >>> fxdecomp.report(small).quality.inputs
        'the example inputs of trace, 4 inputs'
    """

    inputs: str
    count: int
    held_out: bool
    outputs: tuple[OutputDistance, ...]
    precision: str = "fp32"
    costly: tuple[str, ...] = ()
    least_agreement: float = LEAST_AGREEMENT

    def __post_init__(self) -> None:
        if not self.outputs:
            raise ValueError("a network without a floating-point output has no quality")

    @property
    def agreement(self) -> float:
        """That of the worst output."""
        return min(output.agreement for output in self.outputs)

    @property
    def relative_error(self) -> float:
        """That of the worst output."""
        return max(output.relative_error for output in self.outputs)

    @property
    def same_decisions(self) -> float | None:
        """That of the worst output; None where no output decides."""
        shares = [output.same_decisions for output in self.outputs if output.same_decisions is not None]
        return min(shares, default=None)

    @property
    def sentence(self) -> str:
        """The distance in one sentence."""
        worst = "" if len(self.outputs) == 1 else " in its worst output"
        text = f"differs from the original by {self.relative_error:.1%}{worst}"
        if self.same_decisions is not None:
            text += f", decides alike in {self.same_decisions:.1%}"
        return f"{self.precision} {text} ({self.inputs})"

    @property
    def is_poor(self) -> bool:
        """Whether the agreement is below what was asked for."""
        return self.agreement < self.least_agreement

    @property
    def warning(self) -> str:
        """One line where the network is poor, or too few inputs say so, with what to do; else empty."""
        if not self.is_poor:
            unsure = [output.relative_error for output in self.outputs if output.is_uncertain]
            return f"warning: {self.precision} {_UNSURE.format(self.inputs, max(unsure))}" if unsure else ""
        named = f"; most was lost at {', '.join(self.costly)}" if self.costly else ""
        return (
            f"warning: {self.precision} agrees with the original by {self.agreement:.2f} only, below "
            f"{self.least_agreement:g}{named}: leave them out or give them more rank, calibrate, or recover"
        )

    def to_dict(self) -> dict[str, Any]:
        """The distance as JSON data."""
        return asdict(self) | {"agreement": self.agreement}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Quality:
        """The inverse of `to_dict`."""
        fields = {key: value for key, value in data.items() if key != "agreement"}
        outputs = tuple(OutputDistance(**each) for each in data["outputs"])
        return Quality(**fields | {"outputs": outputs, "costly": tuple(data["costly"])})
