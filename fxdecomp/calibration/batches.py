"""`Calibration`: unlabelled inputs and how they are used."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx import GraphModule

from fxdecomp.errors import CalibrationError
from fxdecomp.graphs.inputs import ExampleInputs, call_arguments, naming_batch, placeholder_values
from fxdecomp.layers import LayerSpec

Batch = ExampleInputs

_LEAST_SAMPLES = 16_384
_SAMPLES_PER_DIMENSION = 2
COPIES = 4
"""A metric, its root and temporaries take up to so many times the room of the moments, in float64."""


def inputs_of(batch: Batch) -> int:
    """Number of inputs of a batch: the length of the first tensor's first axis."""
    leaves = [leaf for leaf in pytree.tree_leaves(call_arguments(batch)) if isinstance(leaf, Tensor)]
    return leaves[0].shape[0] if leaves and leaves[0].ndim else 1


@dataclass(frozen=True, slots=True)
class Calibration:
    """Unlabelled inputs, and how they are used.

    Attributes:
        batches: Inputs as the network takes them: tensors, tuples or dicts; any iterable, read once.
        samples: Patches taken of a layer, None for 16,384 or twice the patch's size, whichever is more.
            Layers with fewer output positions use all of them.
        seed: Of the drawing of patches.
        budget_bytes: Memory for the sums and activations that are held at one time; where it does not
            suffice, the batches are run several times, and layers whose own moments do not fit (patches of
            more than 8,192 numbers by default) are decomposed by their weights alone, with a note.
        refit: Whether every chain is fitted once more, to the output of the original network.
        made_up: Whether the inputs are nobody's: see `fxdecomp.calibration.made_up`.

    Raises:
        CalibrationError: There are no batches, one holds no examples or NaN, or an option is out of range.
    """

    batches: Iterable[Batch]
    samples: int | None = None
    seed: int = 0
    budget_bytes: int = 2 << 30
    refit: bool = True
    made_up: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.batches, Tensor):
            raise CalibrationError(
                "calibration is one tensor, wanted an iterable of batches; put it in a list"
            )
        batches = tuple(self.batches)
        if not batches:
            raise CalibrationError("calibration holds no batches; give it at least one")
        for index, batch in enumerate(batches):
            with naming_batch(f"calibration batch {index}", CalibrationError):
                leaves = pytree.tree_leaves(call_arguments(batch))
            tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            if any(leaf.ndim and not leaf.shape[0] for leaf in tensors[:1]):
                raise CalibrationError(f"calibration batch {index} holds no examples; leave it out")
            for leaf in tensors:
                if leaf.is_floating_point() and bool(torch.isnan(leaf).any()):
                    raise CalibrationError(f"calibration batch {index} holds NaN; leave it out")
        if self.samples is not None and not (isinstance(self.samples, int) and self.samples > 0):
            raise CalibrationError(f"samples is a positive whole number or None, got {self.samples!r}")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise CalibrationError(f"seed is a whole number from 0 on, got {self.seed!r}")
        if not self.budget_bytes > 0:
            raise CalibrationError(f"budget_bytes is a positive number of bytes, got {self.budget_bytes!r}")
        object.__setattr__(self, "batches", batches)

    @staticmethod
    def of(given: Calibration | Iterable[Batch]) -> Calibration:
        """The calibration itself, or one of the default options around batches.

        Raises:
            CalibrationError: It is neither.
        """
        if not isinstance(given, Calibration | Iterable):
            raise CalibrationError(f"calibration is of {type(given).__name__}, wanted an iterable of batches")
        return given if isinstance(given, Calibration) else Calibration(given)

    @property
    def count(self) -> int:
        """Number of inputs, over all batches."""
        return sum(map(inputs_of, self.batches))

    def samples_of(self, size: int, beside: int = 0) -> int:
        """How many patches of `size` numbers are taken of a layer, with as many numbers `beside` each.

        No more than are kept as they are, where their moments have no room.
        """
        wanted = self.samples or max(_LEAST_SAMPLES, _SAMPLES_PER_DIMENSION * size)
        if self.has_room_for(size + beside):
            return wanted
        return max(1, min(wanted, self.budget_bytes // (COPIES * 8 * (size + beside))))

    def can_fit(self, spec: LayerSpec) -> bool:
        """Whether a layer can be fitted: its moments have room, or it is a matrix and needs rows alone."""
        return spec.is_pointwise or self.has_room_for(
            spec.in_channels // spec.groups * math.prod(spec.kernel)
        )

    def has_room_for(self, size: int) -> bool:
        """Whether the moments of patches of `size` numbers, and the temporaries of a fit to them, fit."""
        return COPIES * 8 * size**2 <= self.budget_bytes

    def seed_of(self, *place: int) -> int:
        """The seed of one drawing, the same in every process."""
        return int(np.random.SeedSequence((self.seed, *place)).generate_state(1, np.uint64)[0] >> 1)

    def values(self, gm: GraphModule) -> list[list[Any]]:
        """What each batch gives the placeholders of a graph.

        Raises:
            CalibrationError: A batch does not fit the graph.
        """
        assert isinstance(self.batches, Sequence)  # made so above; narrows the type
        found = []
        for index, batch in enumerate(self.batches):
            with naming_batch(f"calibration batch {index}", CalibrationError):
                found.append(placeholder_values(gm, batch))
        return found
