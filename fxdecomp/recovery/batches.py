"""The user's data as batches, split into a part to train on and a part to judge by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, distributed

from fxdecomp.errors import RecoveryError
from fxdecomp.graphs.inputs import ExampleInputs, call_arguments, float_leaves


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One batch of one process.

    Attributes:
        index: Its place in the user's data.
        inputs: A tensor, a tuple of positional or a dict of keyword arguments; the examples along axis 0.
        labels: What `task_loss` gets with it, None without labels.
        examples: Number of examples.
        weight: Examples here over the mean number of examples in a process: 1 unless processes differ.
    """

    index: int
    inputs: ExampleInputs
    labels: Any
    examples: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Batches:
    """The data of one process: what is trained on, and what only judges."""

    train: tuple[Batch, ...]
    held_out: tuple[Batch, ...]


def split_batches(
    data: Iterable[ExampleInputs],
    labels: Sequence[Any] | None,
    share: float,
    seed: int,
    total: Callable[[Tensor], Tensor],
) -> Batches:
    """Hold out a share of the batches, drawn by the seed: the same ones in every process.

    Args:
        data: Batches, in this process's own share of the examples.
        labels: One entry per batch, or None.
        share: Share of the batches that is held out, in (0, 1); at least one batch.
        seed: Seed of the draw.
        total: Sums a tensor over the processes.

    Raises:
        RecoveryError: There are fewer than two batches, the data are no batches, or one holds NaN.
    """
    if isinstance(data, Tensor):
        raise RecoveryError(
            f"data is a tensor of shape {tuple(data.shape)}, wanted a sequence of batches; "
            "use data.split(32), or put a single batch's examples into several"
        )
    if not 0 < share < 1:
        raise RecoveryError(f"held_out is {share}, wanted a share between 0 and 1, such as 0.2")
    inputs = list(data)
    if len(inputs) < 2:
        raise RecoveryError(
            f"data holds {len(inputs)} batches, wanted at least 2: one is held out to judge by"
        )
    if labels is not None and len(labels) != len(inputs):
        raise RecoveryError(
            f"there are {len(labels)} entries of labels and {len(inputs)} batches; give one each"
        )
    counts = torch.tensor(
        [_examples(index, batch) for index, batch in enumerate(inputs)], dtype=torch.float64
    )
    _check_same_length(len(inputs), total)
    for index, batch in enumerate(inputs):
        if any(bool(leaf.isnan().any()) for leaf in float_leaves(call_arguments(batch))):
            raise RecoveryError(f"batch {index} of data holds NaN; every measure of a network would be NaN")
    world = distributed.get_world_size() if distributed.is_initialized() else 1
    weights = counts * world / total(counts.clone())
    batches = [
        Batch(
            index, batch, None if labels is None else labels[index], int(counts[index]), float(weights[index])
        )
        for index, batch in enumerate(inputs)
    ]
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed)).tolist()
    held = set(order[: min(len(batches) - 1, max(1, round(share * len(batches))))])
    return Batches(
        tuple(batch for batch in batches if batch.index not in held),
        tuple(batch for batch in batches if batch.index in held),
    )


def moved(value: Any, device: torch.device) -> Any:
    """The same structure with its tensors on a device."""
    return pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, value)


def _examples(index: int, batch: ExampleInputs) -> int:
    tensors = [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim]
    if not tensors or not tensors[0].shape[0]:
        raise RecoveryError(
            f"batch {index} of data holds no examples; wanted tensors with the examples along axis 0"
        )
    return tensors[0].shape[0]


def _check_same_length(length: int, total: Callable[[Tensor], Tensor]) -> None:
    if not distributed.is_initialized():
        return
    sums = total(torch.tensor([1.0, length, length**2], dtype=torch.float64))
    if abs(float(sums[2] * sums[0] - sums[1] ** 2)) > 0.5:
        raise RecoveryError(
            f"this process has {length} batches, others have more or fewer; give each the same number"
        )
