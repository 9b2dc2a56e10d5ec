"""On which inputs a finished network is compared with the original, and what that says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.fx import GraphModule

from fxdecomp.calibration.batches import Batch, Calibration, inputs_of
from fxdecomp.calibration.distance import Outputs, distance, named_outputs
from fxdecomp.calibration.splitting import LEAST_INPUTS, split
from fxdecomp.graphs.records import Record, attach_record, examples_of, record_of
from fxdecomp.outcomes import Applied, Outcome
from fxdecomp.quality import LEAST_AGREEMENT, Quality

_NAMED = 3
_WANTED = "16 inputs and more help"


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """Inputs to compare networks on.

    Attributes:
        batches: The inputs.
        inputs: Where they come from, in words.
        held_out: Whether nothing is fitted to them.
        first: Number of the first of them in the user's calibration, None where they are others.
    """

    batches: tuple[Batch, ...]
    inputs: str
    held_out: bool
    first: int | None = None

    @property
    def count(self) -> int:
        """Number of inputs."""
        return sum(map(inputs_of, self.batches))

    @property
    def description(self) -> str:
        """Where they come from and how many they are."""
        return f"{self.inputs}, {self.count} input{'' if self.count == 1 else 's'}"


def judged_inputs(gm: GraphModule, data: Calibration | None) -> tuple[Calibration | None, Judged | None]:
    """The calibration that is to be fitted to, and the inputs that are to be judged on.

    Args:
        gm: The original network.
        data: The user's calibration.

    Returns:
        A part of the calibration for each, or all of it to judge on where it is too small to be fitted to;
        without one the example inputs of `trace` to judge on, and None
        where these are not known, or the network does not take them any more.
    """
    if data is None:
        examples = examples_of(gm)
        known = examples is not None and takes(gm, (examples,))  # it may have been moved, or converted
        return None, Judged((examples,), "the example inputs of trace", True) if known else None
    fitted, held = split(data)
    whole = tuple(data.batches)
    if data.count < LEAST_INPUTS:
        return None, Judged(whole, f"the calibration, too small to be fitted to ({_WANTED})", True, 0)
    place = len(whole) - len(held)
    if held and held[0] is not whole[place] and not takes(gm, (tuple(fitted.batches)[-1], held[0])):
        held = ()
    if not held:
        return data, Judged(whole, "the calibration inputs themselves", False, 0)
    return fitted, Judged(held, "held-out calibration", True, place)


def takes(gm: GraphModule, batches: Sequence[Batch]) -> bool:
    """Whether a network runs on some inputs, such as parts of a batch, whose size may be written into it."""
    try:
        for batch in batches:
            named_outputs(gm, batch)
    except Exception:  # noqa: BLE001 - a network's own code runs here and may raise anything
        return False
    return True


def quality_of(
    original: GraphModule,
    other: Outputs,
    judged: Judged,
    outcomes: Sequence[Outcome] = (),
    *,
    precision: str = "fp32",
    least_agreement: float = LEAST_AGREEMENT,
) -> Quality | None:
    """Measure a network; None where it has no floating-point output.

    Args:
        original: The original network.
        other: The outputs of the network that stands for it.
        judged: The inputs.
        outcomes: What became of its layers.
        precision: What its numbers are.
        least_agreement: Below it there is a warning.

    Raises:
        CalibrationError: A batch does not fit the network; says which.
    """
    outputs = distance(original, other, judged.batches, judged.first)
    if not outputs:
        return None
    lost = {o.site: _loss(o) for o in outcomes if isinstance(o, Applied)}
    costly = sorted((site for site in lost if lost[site] > 0), key=lambda site: -lost[site])[:_NAMED]
    return Quality(
        judged.description, judged.count, judged.held_out, outputs, precision, tuple(costly), least_agreement
    )


def with_quality(
    small: GraphModule, original: GraphModule, judged: Judged | None, least_agreement: float
) -> GraphModule:
    """A finished network, with its distance to the original in its record.

    A run that replaced nothing more leaves what an earlier one measured, against the first original.
    """
    record, before = record_of(small) or Record(), record_of(original) or Record()
    if _applied(record) == _applied(before) and before.quality is not None:
        return small
    quality = None
    if judged is not None:
        against = "; against the compressed network that was given" if _applied(before) else ""
        quality = quality_of(
            original,
            lambda batch: list(named_outputs(small, batch).values()),
            replace(judged, inputs=judged.inputs + against),
            record.outcomes,
            precision=precision_of(small),
            least_agreement=least_agreement,
        )
    attach_record(small, replace(record, quality=quality))
    return small


def precision_of(gm: GraphModule) -> str:
    """What the numbers of a network are: `fp32`, or another type's name."""
    kinds = {str(p.dtype).removeprefix("torch.") for p in gm.parameters() if p.is_floating_point()}
    names = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float64": "fp64"}
    return " and ".join(sorted(names.get(kind, kind) for kind in kinds)) or "fp32"


def _applied(record: Record) -> set[str]:
    return {outcome.site for outcome in record.outcomes if isinstance(outcome, Applied)}


def _loss(outcome: Any) -> float:
    """What is known of a layer's loss: the lost share of its output's variance, or of its weight."""
    known = outcome.output_error
    return float(outcome.relative_error**2 if known is None else known)
