"""How far a network's outputs are from those of the original: the measure of damage without labels."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxdecomp.calibration import Batch
from fxdecomp.errors import CalibrationError
from fxdecomp.graphs.inputs import call_arguments, float_leaves, naming_batch
from fxdecomp.graphs.untouched import called, copied, evaluating, one_at_a_time, unchanged_buffers


class Agreement:
    """`1 - E||y - y'||^2 / E||y - mean(y)||^2` over all floating-point outputs; 1 for the original itself.

    Places where the original gives infinity or NaN, such as masked classes, do not count; elsewhere what is
    not finite counts as zero. Of outputs that do
    not vary, the squares themselves are the measure.

    Attributes:
        is_blind: Whether the original has no floating-point output other than zero: nothing can be compared.
    """

    def __init__(self, gm: GraphModule, batches: Iterable[Batch], *, first: int = 0) -> None:
        """Run the original.

        Args:
            gm: The original network.
            batches: The inputs to compare on.
            first: Number of the first of them in the user's calibration.

        Raises:
            CalibrationError: A batch does not fit the network; says which.
        """
        self._batches = tuple(batches)
        self._wanted = []
        for index, batch in enumerate(self._batches, start=first):
            with naming_batch(f"calibration batch {index}", CalibrationError):
                self._wanted.append(self.outputs(gm, batch))
        columns = [
            torch.cat([each[each.isfinite()] for each in column])
            for column in zip(*self._wanted, strict=True)
        ]
        self._power = sum(float((column - column.mean()).square().sum()) for column in columns if len(column))
        self._power = self._power or sum(float(column.square().sum()) for column in columns)
        self.is_blind = self._power == 0.0

    def __call__(self, module: GraphModule) -> float:
        """The agreement of a network that takes the same inputs."""
        return 1.0 - self.lost(self.outputs(module, batch) for batch in self._batches)

    def lost(self, outputs: Iterable[list[Tensor]]) -> float:
        """The relative squared error of outputs, one list for each batch."""
        return sum(
            self.lost_in(index, got) for index, got in zip(range(len(self._wanted)), outputs, strict=True)
        )

    def lost_in(self, index: int, outputs: list[Tensor]) -> float:
        """What one batch adds to that error."""
        lost = 0.0
        for a, b in zip(outputs, self._wanted[index], strict=True):
            finite = b.isfinite()
            lost += float((a[finite].nan_to_num(0.0, 0.0, 0.0) - b[finite]).square().sum())
        return lost / self._power if self._power else 0.0

    @staticmethod
    @one_at_a_time
    @torch.no_grad()
    def outputs(module: GraphModule, batch: Batch) -> list[Tensor]:
        """The floating-point outputs for a batch, in double precision."""
        args, kwargs = copied(call_arguments(batch))
        with evaluating(module), unchanged_buffers(module):
            return [leaf.double() for leaf in float_leaves(called(module, args, kwargs))]
