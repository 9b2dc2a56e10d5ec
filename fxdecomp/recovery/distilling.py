"""What the two phases of a recovery compute: the losses, and the measure on held-out data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, distributed, nn
from torch.fx import GraphModule
from torch.nn.parallel import DistributedDataParallel

from fxdecomp.errors import RecoveryError
from fxdecomp.graphs.inputs import call_arguments, naming_batch, placeholder_values
from fxdecomp.graphs.untouched import called, copied
from fxdecomp.recovery.batches import Batch, Batches, moved
from fxdecomp.recovery.blocks import Block, block_student, block_teacher
from fxdecomp.recovery.measuring import (
    Agreement,
    Measure,
    agreement_sums,
    moments_of,
    relative_error,
    variances_of,
)

_VARIANCE_BATCHES = 8
_CACHE_BYTES = 1 << 30

TaskLoss = Callable[[Any, Any], Tensor]
"""The network's outputs and a batch's labels to a mean loss over the batch."""


@dataclass(frozen=True, slots=True, eq=False)
class Distillation:
    """A student, its teacher and their data, on one device.

    Attributes:
        student: The network that is trained, in place.
        teacher: The original, with its BatchNorms folded; never changed.
        blocks: The student's chains.
        batches: The data.
        device: Where both networks are.
        autocast: Type of mixed precision, None for none.
        task_loss: A loss on labels, or None.
        task_weight: Its weight beside the distillation.
        agreement: The user's own notion of deciding alike, or None.
        targets: The teacher's outputs that are kept, by batch.
    """

    student: GraphModule
    teacher: GraphModule
    blocks: tuple[Block, ...]
    batches: Batches
    device: torch.device
    autocast: torch.dtype | None = None
    task_loss: TaskLoss | None = None
    task_weight: float = 1.0
    agreement: Agreement | None = None
    targets: dict[int, Any] = field(default_factory=dict)

    def begin_blocks(self) -> Callable[[Batch], Tensor]:
        """The loss of the first phase: the mean relative error of the chains' outputs."""
        student, teacher = block_student(self.student, self.blocks), block_teacher(self.teacher, self.blocks)
        parallel = self._parallel(student)

        @torch.no_grad()
        def wanted(batch: Batch) -> Any:
            with self._precision(), naming_batch(f"batch {batch.index} of data", RecoveryError):
                return teacher(*placeholder_values(self.teacher, self._inputs(batch)))

        variances = self._variances(wanted)

        def loss(batch: Batch) -> Tensor:
            targets = wanted(batch)
            with self._precision():
                got = parallel(*placeholder_values(self.student, self._inputs(batch)))
            return relative_error(got, targets, variances)

        return loss

    def begin_outputs(self) -> Callable[[Batch], Tensor]:
        """The loss of the second phase: the relative error of the outputs, and the task loss."""
        parallel, variances = self._parallel(self.student), self.output_variances()

        def loss(batch: Batch) -> Tensor:
            wanted = self._wanted(batch)
            return self._loss(self._call(parallel, batch), wanted, batch, variances)

        return loss

    def output_variances(self) -> Tensor:
        """The variance of each tensor of the original's outputs, `[tensors]`."""
        return self._variances(self._wanted)

    @torch.no_grad()
    def measure(self, variances: Tensor) -> Measure:
        """The student on the held-out data of all processes.

        Args:
            variances: Of the original's outputs, `[tensors]`.
        """
        sums = torch.zeros(6, dtype=torch.float64)
        for batch in self.batches.held_out:
            wanted = self._wanted(batch)
            outputs = self._call(self.student, batch)
            error = float(self._loss(outputs, wanted, batch, variances))
            if self.agreement is None:
                agreed = agreement_sums(outputs, wanted)
            else:
                alike = self.agreement(outputs, wanted).double().cpu()
                agreed = torch.tensor([len(alike), alike.sum(), 0, 0], dtype=torch.float64)
            sums += torch.cat(
                [torch.tensor([batch.examples, error * batch.examples], dtype=torch.float64), agreed]
            )
        count, error, examples, alike, decisions, same = self.total(sums).tolist()
        return Measure(
            error / count,
            alike / examples if examples else 1.0,
            same / decisions if decisions else 1.0,
            int(examples),
        )

    def total(self, values: Tensor) -> Tensor:
        """The sum of a tensor over the processes."""
        return total(values, self.device)

    def _loss(self, outputs: Any, wanted: Any, batch: Batch, variances: Tensor) -> Tensor:
        loss = relative_error(outputs, wanted, variances)
        if self.task_loss is not None:
            loss = loss + self.task_weight * self.task_loss(outputs, moved(batch.labels, self.device))
        return loss

    def _inputs(self, batch: Batch) -> Any:
        """A copy on the device: a network may change its inputs in place."""
        return copied(moved(batch.inputs, self.device))

    def _call(self, module: nn.Module, batch: Batch) -> Any:
        args, kwargs = call_arguments(self._inputs(batch))
        with self._precision():
            return called(module, args, kwargs)

    @torch.no_grad()
    def _wanted(self, batch: Batch) -> Any:
        """The original's outputs on a batch; kept as long as they are few."""
        if batch.index not in self.targets:
            with naming_batch(f"batch {batch.index} of data", RecoveryError):
                outputs = self._call(self.teacher, batch)
            held = [t for t in pytree.tree_leaves(tuple(self.targets.values())) if isinstance(t, Tensor)]
            if sum(t.nbytes for t in held) >= _CACHE_BYTES:
                return outputs
            self.targets[batch.index] = outputs
        return self.targets[batch.index]

    def _variances(self, outputs_of: Callable[[Batch], Any]) -> Tensor:
        moments = [moments_of(outputs_of(batch)) for batch in self.batches.train[:_VARIANCE_BATCHES]]
        return variances_of(self.total(torch.stack(moments).sum(0)))

    def _parallel(self, module: nn.Module) -> nn.Module:
        if not distributed.is_initialized():
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices, forward_sync_buffers=False)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None)


def total(values: Tensor, device: torch.device) -> Tensor:
    """The sum of a tensor over the processes, which talk through `device`."""
    if not distributed.is_initialized():
        return values
    there = values.to(device, copy=True)
    distributed.all_reduce(there)
    return there.to(values.device)
