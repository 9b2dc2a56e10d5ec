"""How far the outputs of a network are from the original's, in a few forward passes that leave no trace."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx import GraphModule

from fxdecomp.calibration.batches import Batch
from fxdecomp.errors import CalibrationError
from fxdecomp.graphs.copies import copy_owning_tensors
from fxdecomp.graphs.inputs import call_arguments, naming_batch
from fxdecomp.graphs.untouched import called, copied, evaluating, same_chance, unchanged_buffers
from fxdecomp.quality import OutputDistance
from fxdecomp.sites.constants import changes_stored_tensors

Outputs = Callable[[Batch], Sequence[Tensor]]
"""A network as what it gives for a batch: its floating-point outputs in order."""


def decisions_of(leaf: Tensor) -> Tensor | None:
    """The classes that an output decides for, None where it does not look like scores of classes.

    Scores are `[N, C]` or `[N, T, C]` with at least two classes: `argmax` over the last axis, `[N, T]`.
    Images and other outputs decide nothing, and are judged by their error alone.
    """
    if leaf.ndim not in (2, 3) or leaf.shape[-1] < 2 or not leaf.numel():
        return None
    return leaf.argmax(-1).reshape(leaf.shape[0], -1)


@torch.no_grad()
def named_outputs(gm: GraphModule, batch: Batch) -> dict[str, Tensor]:
    """The floating-point outputs of a network in eval mode, by name; its modes, buffers and chance stay."""
    args, kwargs = copied(call_arguments(batch))
    if changes_stored_tensors(gm):
        gm = copy_owning_tensors(gm, gm)
    with evaluating(gm), unchanged_buffers(gm), same_chance(batch):
        found = called(gm, args, kwargs)
    return {
        f"output{pytree.keystr(path)}": leaf.detach()
        for path, leaf in pytree.tree_flatten_with_path(found)[0]
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    }


def distance(
    original: GraphModule, other: Outputs, batches: Sequence[Batch], first: int | None = None
) -> tuple[OutputDistance, ...]:
    """Compare a network with the original.

    Args:
        original: The original network.
        other: The outputs of the network that stands for it.
        batches: Inputs; their outputs are not kept.
        first: Number of the first of them in the user's calibration, None where they are others.

    Returns:
        One entry per floating-point output.

    Raises:
        CalibrationError: A batch does not fit a network; says which.
    """
    sums: dict[str, _Sums] = {}
    for index, batch in enumerate(batches):
        which = "the example inputs" if first is None else f"calibration batch {first + index}"
        with naming_batch(which, CalibrationError):
            wanted, found = named_outputs(original, batch), other(batch)
        for (name, one), got in zip(wanted.items(), found, strict=True):
            sums.setdefault(name, _Sums()).add(one, got)
    return tuple(each.distance(name) for name, each in sums.items())


@dataclass(slots=True)
class _Sums:
    """What is known of one output so far; sums of values are taken about the first batch's mean."""

    lost: float = 0.0
    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    plain_squares: float = 0.0
    decisions: int = 0
    alike: int = 0
    shift: float | None = field(default=None)

    def add(self, wanted: Tensor, got: Tensor) -> None:
        """Take in one batch of an output, of the original and of the other network."""
        finite = wanted.isfinite()
        one, other = wanted[finite].double(), got.to(wanted.device)[finite].double().nan_to_num(0.0, 0.0, 0.0)
        if self.shift is None:
            self.shift = float(one.mean()) if len(one) else 0.0
        self.lost += float((one - other).square().sum())
        self.count += len(one)
        self.total += float((one - self.shift).sum())
        self.squares += float((one - self.shift).square().sum())
        self.plain_squares += float(one.square().sum())
        theirs, ours = decisions_of(wanted), decisions_of(got.to(wanted.device))
        if theirs is not None and ours is not None:
            self.decisions += theirs.numel()
            self.alike += int((theirs == ours).sum())

    def distance(self, name: str) -> OutputDistance:
        """The distance over all batches."""
        power = self.squares - (self.total**2 / self.count if self.count else 0.0)
        if not power > 1e-12 * self.plain_squares:
            power = self.plain_squares  # it does not vary
        ratio = self.lost / power if power else float(self.lost > 0)
        error = math.sqrt(ratio) if math.isfinite(ratio) else sys.float_info.max
        alike = self.alike / self.decisions if self.decisions else None
        return OutputDistance(name, error, alike, self.decisions)
