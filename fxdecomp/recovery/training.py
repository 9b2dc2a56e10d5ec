"""The training loop: phases of steps, the best state by held-out data, resume without a trace.

Adam (Kingma & Ba 2015), with step sizes relative to the root mean square of each parameter at the start of
its phase, so that one rate suits factors and layers of any scale; warm-up, then a cosine to zero (Loshchilov
& Hutter 2017). Gradients are clipped against their own running norm. A state whose held-out error is not
finite, or twice the best, sends the loop back to the best state at half the rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from fxdecomp.progress import Progress
from fxdecomp.recovery.batches import Batch
from fxdecomp.recovery.checkpoints import load_checkpoint, save_atomically
from fxdecomp.recovery.measuring import Measure

_WARM_UP = 0.1
_EVALUATIONS = 10
_CLIP = 2.0
_CLIP_MEMORY = 0.9
_SMALLEST_RMS = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Phase:
    """A stretch of training towards one loss.

    Attributes:
        name: What progress reports call it.
        steps: Number of steps.
        rate: Size of a step, relative to the root mean square of each parameter.
        parameters: What is trained, by name.
        begin: Makes the function from a batch to its loss, when the phase begins.
    """

    name: str
    steps: int
    rate: float
    parameters: Mapping[str, nn.Parameter]
    begin: Callable[[], Callable[[Batch], Tensor]]


@dataclass(slots=True, eq=False)
class _State:
    """Where a run is: all that a checkpoint holds beside the parameters and the optimiser."""

    start: Measure
    best: Measure
    phase: int = 0
    step: int = 0
    damping: float = 1.0
    norm: float = 0.0
    improved: bool = False
    kept: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Training:
    """What stays the same over a run.

    Attributes:
        parameters: Everything that some phase trains, by name.
        batches: What is trained on.
        measure: Measures the network as it is, on the held-out data.
        seed: Seed of the order of the batches.
        scaled: Whether losses must be scaled, as float16 needs.
        checkpoint: File of the checkpoint, or None.
        fingerprint: What the checkpoint must bear.
        progress: Told of every step.
    """

    parameters: Mapping[str, nn.Parameter]
    batches: Sequence[Batch]
    measure: Callable[[], Measure]
    seed: int
    scaled: bool
    checkpoint: Path | None
    fingerprint: str
    progress: Progress

    def run(self, start: Measure, phases: Sequence[Phase]) -> Measure | None:
        """Train from the parameters as they are, and leave the best state in them.

        Args:
            start: The measure that no accepted state is worse than, in any respect.
            phases: What is done one after the other; each begins at the best state so far.

        Returns:
            The measure of the best state; None if no state was better than the start.

        Raises:
            RecoveryError: The checkpoint is damaged or of another run.
        """
        saved = None if self.checkpoint is None else load_checkpoint(self.checkpoint, self.fingerprint)
        if saved is None:
            state = _State(start, start, kept=self._copy())
        else:
            state = _restored(saved["state"], saved["kept"])
        for index in range(state.phase, len(phases)):
            self._run_phase(phases[index], state, saved)
            saved = None
            state.phase, state.step, state.damping, state.norm = index + 1, 0, 1.0, 0.0
            self._save(state, None, None)
        self._load(state.kept)
        return state.best if state.improved else None

    def _run_phase(self, phase: Phase, state: _State, saved: dict[str, Any] | None) -> None:
        resumed = saved is not None and saved["optimizer"] is not None
        self._load(state.kept)
        optimizer = _optimizer(phase)  # the step sizes are those of the state that the phase began with
        scaler = torch.amp.GradScaler(next(iter(phase.parameters.values())).device.type, enabled=self.scaled)
        if saved is not None and resumed:
            self._load(saved["parameters"])
            optimizer.load_state_dict(saved["optimizer"])
            scaler.load_state_dict(saved["scaler"])
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(
                name in phase.parameters
            )  # processes wait for the gradient of each that does
        loss_of = phase.begin()
        every = max(1, phase.steps // _EVALUATIONS)
        while state.step < phase.steps:
            self._step(phase, state, optimizer, scaler, loss_of)
            state.step += 1
            if state.step % every == 0 or state.step == phase.steps:
                if self._judge(state):
                    optimizer = _optimizer(phase)
                self._save(state, optimizer, scaler)
            self.progress(phase.name, state.step, phase.steps)

    def _step(
        self,
        phase: Phase,
        state: _State,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        loss_of: Callable[[Batch], Tensor],
    ) -> None:
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * state.damping * _schedule(state.step, phase.steps)
        batch = self._batch(state.phase, state.step)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss_of(batch) * batch.weight).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(optimizer)
        gradients = [p.grad for p in phase.parameters.values() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
        if math.isfinite(norm):
            bound = _CLIP * state.norm if state.norm else math.inf
            if norm > bound:
                torch._foreach_mul_(gradients, bound / norm)
            state.norm = _CLIP_MEMORY * (state.norm or norm) + (1 - _CLIP_MEMORY) * min(norm, bound)
            scaler.step(optimizer)
        scaler.update()

    def _judge(self, state: _State) -> bool:
        """Measure, keep what is best; whether the loop went back to it."""
        measure = self.measure()
        if measure.no_worse_than(state.start) and measure.better_than(state.best):
            state.best, state.improved, state.kept = measure, True, self._copy()
        if measure.is_finite() and measure.error <= state.best.error + abs(state.best.error):
            return False
        self._load(state.kept)
        state.damping, state.norm = state.damping / 2, 0.0
        return True

    def _batch(self, phase: int, step: int) -> Batch:
        """The batch of a step: each epoch has its own order, the same everywhere and after a resume."""
        epoch, place = divmod(step, len(self.batches))
        generator = torch.Generator().manual_seed(hash((self.seed, phase, epoch)) % 2**63)
        return self.batches[int(torch.randperm(len(self.batches), generator=generator)[place])]

    def _copy(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def _load(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def _save(
        self, state: _State, optimizer: torch.optim.Optimizer | None, scaler: torch.amp.GradScaler | None
    ) -> None:
        first = not distributed.is_initialized() or distributed.get_rank() == 0
        if self.checkpoint is None or not first:
            return
        data = {
            "fingerprint": self.fingerprint,
            "state": asdict(replace(state, kept={})),
            "kept": state.kept,
            "parameters": self._copy(),
            "optimizer": None if optimizer is None else optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        save_atomically(self.checkpoint, data)


def _restored(state: dict[str, Any], kept: dict[str, Tensor]) -> _State:
    measures = {key: Measure(**state[key]) for key in ("start", "best")}
    return _State(**state | measures | {"kept": kept})


def _optimizer(phase: Phase) -> torch.optim.Optimizer:
    groups = []
    for parameter in phase.parameters.values():
        rms = float(parameter.detach().float().square().mean().sqrt())
        groups.append({"params": [parameter], "base": phase.rate * max(rms, _SMALLEST_RMS)})
    return torch.optim.Adam(groups, lr=0.0, betas=(0.9, 0.99))


def _schedule(step: int, steps: int) -> float:
    """The share of the full rate at a step: up in a line, down in a cosine."""
    warm_up = max(1, round(_WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
