"""What a refit sees at one layer: input patches with the outputs that are wanted there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fxdecomp.calibration.moments import MomentsSum
from fxdecomp.fitting.rectifying import Samples
from fxdecomp.fitting.refitting import JointMoments


class Observed:
    """One group's rows of input patch and wanted output: their moments, and the rows where needed."""

    def __init__(self, inputs: int, *, keep: bool) -> None:
        """Begin with none.

        Args:
            inputs: How many numbers of a row are the patch's.
            keep: Whether the rows themselves are wanted too.
        """
        self._inputs = inputs
        self._keep = keep
        self._sums = {False: MomentsSum(), True: MomentsSum()}
        self._rows: dict[bool, list[Tensor]] = {False: [], True: []}

    def add(self, rows: Float[Tensor, "n d"], *, held: bool) -> None:
        """Add rows, to fit to or to judge by."""
        self._sums[held].add(rows)
        if self._keep:
            self._rows[held].append(rows)

    def moments(self) -> tuple[JointMoments, JointMoments]:
        """Of the rows to fit to, and of those that are held out; once, as the sums are given away."""
        fit, held = (JointMoments.of(self._sums.pop(key).moments(), self._inputs) for key in (False, True))
        return fit, held

    def samples(self) -> tuple[Samples, Samples]:
        """The rows to fit to, and those that are held out."""
        return self._of(self._rows[False]), self._of(self._rows[True])

    def _of(self, rows: Sequence[Tensor]) -> Samples:
        d = self._inputs
        return Samples([part[:, :d] for part in rows], torch.cat([part[:, d:] for part in rows]))
