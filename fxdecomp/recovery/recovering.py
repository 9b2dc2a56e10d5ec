"""`recover`: distil the original network into a compressed one, first block by block, then end to end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.fx import GraphModule

from fxdecomp.calibration.distance import named_outputs
from fxdecomp.calibration.judging import Judged, quality_of
from fxdecomp.errors import RecoveryError
from fxdecomp.files import check_file
from fxdecomp.graphs.copies import copy_owning_tensors, stored_tensors
from fxdecomp.graphs.fingerprints import fingerprint
from fxdecomp.graphs.inputs import ExampleInputs, call_arguments
from fxdecomp.graphs.records import Record, attach_record, record_of
from fxdecomp.graphs.untouched import one_at_a_time, unchanged_buffers
from fxdecomp.outcomes import Applied
from fxdecomp.passes import FoldBatchNorm
from fxdecomp.progress import Progress, silent
from fxdecomp.quality import LEAST_AGREEMENT
from fxdecomp.recovery.balancing import balance
from fxdecomp.recovery.batches import Batches, moved, split_batches
from fxdecomp.recovery.blocks import blocks_of, obstacle, stages_of
from fxdecomp.recovery.checkpoints import name_of
from fxdecomp.recovery.distilling import Distillation, TaskLoss, total
from fxdecomp.recovery.measuring import Agreement, Measure
from fxdecomp.recovery.training import Phase, Training


@one_at_a_time
def recover(
    small: GraphModule,
    original: GraphModule,
    data: Iterable[ExampleInputs],
    *,
    block_steps: int = 200,
    steps: int = 400,
    block_rate: float = 1e-2,
    rate: float = 3e-3,
    held_out: float = 0.2,
    labels: Sequence[Any] | None = None,
    task_loss: TaskLoss | None = None,
    task_weight: float = 1.0,
    agreement: Agreement | None = None,
    autocast: torch.dtype | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: Progress = silent,
) -> GraphModule:
    """Train a compressed network towards the outputs of the original; labels are not needed.

    Runs where the networks are, in eval mode. In several processes (`torchrun`, with a process group
    initialised) each passes its own share of the examples, in as many batches; all return the same.

    Args:
        small: A graph from `transform`; it is not changed.
        original: The graph that it was made from; it is not changed.
        data: Batches of inputs, the examples along axis 0: tensors, tuples or dicts, as for `trace`.
        block_steps: Steps of the first phase, each chain towards the original's activations.
        steps: Steps of the second phase, all parameters that require gradients towards the outputs.
        block_rate: Size of a step of the first phase, relative to the root mean square of each parameter.
        rate: The same of the second phase.
        held_out: Share of the batches that is not trained on; it decides which state is returned.
        labels: One entry per batch for `task_loss`.
        task_loss: `task_loss(outputs, labels)`, a mean over the batch, added to the second phase's error.
        task_weight: Its weight beside the relative error of the outputs.
        agreement: What counts as deciding alike, `agreement(outputs, wanted)` in [0, 1] per example; by
            default the classes of outputs `[N, C]` and `[N, T, C]`.
        autocast: `torch.bfloat16` or `torch.float16` for mixed precision.
        seed: Seed of the held-out draw and of the order of batches.
        checkpoint: A file that is written at every evaluation; a run that finds it continues there.
        progress: Told of every step.

    Returns:
        A new GraphModule: the state of least risk (error times share of examples that differ) on the held-out
        batches, among those that are no worse than `small` in error, in examples and in decisions; a copy of
        `small`, if none is better. The last note of its record says what was measured, its `quality` how far
        the outputs are from the original's on the held-out batches (in one process only).

    Raises:
        RecoveryError: The networks, the data or the checkpoint do not fit, or the networks are swapped.
        FxdecompError: The checkpoint's folder is not there.

    Example:
        >>> import torch, fxdecomp
        >>> gm = fxdecomp.trace(torch.nn.Sequential(torch.nn.Linear(16, 16)), torch.randn(1, 16))
        >>> small = fxdecomp.transform(gm, fxdecomp.Policy(method="svd", rank=4))
        >>> better = fxdecomp.recover(small, gm, torch.randn(64, 16).split(16), block_steps=5, steps=5)
    """
    _check_numbers(
        {"block_steps": block_steps, "steps": steps, "seed": seed},
        {"block_rate": block_rate, "rate": rate},
        task_weight,
    )
    _check_order(small, original)
    device = _device(small, original)
    if (labels is None) != (task_loss is None):
        raise RecoveryError("labels and task_loss go together; give both, or neither")
    if checkpoint is not None:
        check_file(Path(checkpoint))
    batches = split_batches(data, labels, held_out, seed, lambda values: total(values, device))
    result = copy_owning_tensors(small, small)
    student = copy_owning_tensors(small, small).eval()
    teacher = FoldBatchNorm()(original).eval()
    distillation = Distillation(
        student,
        teacher,
        blocks_of(student, teacher),
        batches,
        device,
        autocast,
        task_loss,
        task_weight,
        agreement,
    )
    stages = stages_of(student, distillation.blocks)
    everything, chains = _trained(student, [stage for chain in stages.values() for stage in chain])
    stands = obstacle(student)
    with unchanged_buffers(original), unchanged_buffers(small):
        variances = distillation.output_variances()
        start = distillation.measure(variances)
        for name in dict.fromkeys(block.site for block in distillation.blocks if block.is_alone):
            balance(stages[name])
        phases = [
            Phase("recover blocks", block_steps, block_rate, chains, distillation.begin_blocks),
            Phase("recover outputs", 0 if stands else steps, rate, everything, distillation.begin_outputs),
        ]
        settings = {
            "phases": [(phase.name, phase.steps, phase.rate) for phase in phases],
            "task": (name_of(task_loss), task_weight, name_of(agreement)),
            "precision": str(autocast),
            "seed": seed,
        }
        values = [
            (call_arguments(batch.inputs), batch.labels) for batch in (*batches.train, *batches.held_out)
        ]
        training = Training(
            everything,
            batches.train,
            lambda: distillation.measure(variances),
            seed,
            autocast is torch.float16,
            None if checkpoint is None else Path(checkpoint),
            "" if checkpoint is None else fingerprint(settings, [small, original], values),
            progress,
        )
        best = training.run(start, [phase for phase in phases if phase.steps and phase.parameters])
    if best is not None:
        _copy_parameters(everything, result)
    _note(result, start, best, stands)
    _measure(result, original, batches, device)
    return result


def _measure(result: GraphModule, original: GraphModule, batches: Batches, device: torch.device) -> None:
    """Put the distance to the original in the record; of several processes each would have its own."""
    record = record_of(result) or Record()
    quality = None
    if not (distributed.is_initialized() and distributed.get_world_size() > 1):
        held = tuple(moved(batch.inputs, device) for batch in batches.held_out)
        quality = quality_of(
            original,
            lambda batch: list(named_outputs(result, batch).values()),
            Judged(held, "batches that recovery did not train on", held_out=False),
            record.outcomes,
            least_agreement=LEAST_AGREEMENT if record.quality is None else record.quality.least_agreement,
        )
    attach_record(result, replace(record, quality=quality))


def _check_order(small: GraphModule, original: GraphModule) -> None:
    """Raise where the two networks were given in the wrong order."""
    if _chains_of(original) and not _chains_of(small):
        raise RecoveryError(
            "recover(small, original) got the compressed network second: swap them, the first one is trained"
        )


def _chains_of(gm: GraphModule) -> int:
    record = record_of(gm)
    return 0 if record is None else sum(isinstance(outcome, Applied) for outcome in record.outcomes)


def _check_numbers(counts: dict[str, int], rates: dict[str, float], weight: float) -> None:
    """Raise where a number cannot be meant: training would run to its end and change nothing, or all."""
    for name, count in counts.items():
        if type(count) is not int or count < 0:
            raise RecoveryError(f"{name} is {count!r}; wanted a whole number from 0 on")
    for name, rate in rates.items():
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf:
            raise RecoveryError(f"{name} is {rate!r}; wanted a number above 0, such as 0.01")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise RecoveryError(f"task_weight is {weight!r}; wanted a number from 0 on, such as 1.0")


def _device(small: GraphModule, original: GraphModule) -> torch.device:
    tensors = [
        (name, t) for name, gm in (("small", small), ("original", original)) for t in stored_tensors(gm)
    ]
    devices = {t.device for _, t in tensors}
    if len(devices) != 1:
        raise RecoveryError(
            f"the networks are on {sorted(map(str, devices)) or 'no device'}; move both to one device"
        )
    for name, tensor in tensors:
        if tensor.dtype in (torch.float16, torch.bfloat16):
            raise RecoveryError(
                f"{name} holds {tensor.dtype}, in which small steps are lost; "
                f"convert both networks with .float() and use autocast={tensor.dtype}"
            )
    return devices.pop()


def _trained(
    student: GraphModule, stages: Sequence[nn.Module]
) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """All parameters to train, and those of the chains alone, by name; the others are frozen."""
    of_chains = {id(parameter) for stage in stages for parameter in stage.parameters()}
    used = {id(p) for node in student.graph.nodes for p in _parameters_at(student, node.op, str(node.target))}
    everything = {
        name: parameter
        for name, parameter in student.named_parameters()
        if parameter.is_floating_point()
        and (id(parameter) in of_chains or (parameter.requires_grad and id(parameter) in used))
    }
    for parameter in student.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(any(parameter is trained for trained in everything.values()))
    return everything, {name: p for name, p in everything.items() if id(p) in of_chains}


def _parameters_at(gm: GraphModule, op: str, target: str) -> list[Tensor]:
    if op == "call_module":
        return list(gm.get_submodule(target).parameters())
    if op == "get_attr":
        owner, _, name = target.rpartition(".")
        value = getattr(gm.get_submodule(owner), name)
        return [value] if isinstance(value, nn.Parameter) else []
    return []


@torch.no_grad()
def _copy_parameters(trained: dict[str, nn.Parameter], result: GraphModule) -> None:
    parameters = dict(result.named_parameters())
    for name, parameter in trained.items():
        parameters[name].copy_(parameter)


def _note(result: GraphModule, start: Measure, best: Measure | None, stands: str) -> None:
    record = record_of(result) or Record()
    found = f"held-out {start}; no state was better" if best is None else f"held-out {start}; then {best}"
    if stands:
        found += f"; block by block only: {stands} stands in the way of the outputs and gives no gradients"
    attach_record(result, replace(record, notes=(*record.notes, f"recovery: {found}")))
