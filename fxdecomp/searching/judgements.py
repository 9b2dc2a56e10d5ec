"""How good each network and file of one run is: its distance to the original, and the user's metric."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from fxdecomp.calibration import Batch
from fxdecomp.calibration.judging import Judged, quality_of
from fxdecomp.errors import first_line
from fxdecomp.export.file_network import FileNetwork
from fxdecomp.export.metadata import describe_quality
from fxdecomp.graphs.inputs import ExampleInputs, call_arguments, float_leaves
from fxdecomp.graphs.records import Record, record_of
from fxdecomp.quality import LEAST_AGREEMENT, Quality
from fxdecomp.searching.judging import Metric, judged_by, mean_of, scores_of
from fxdecomp.searching.trials import SearchResult


@dataclass(frozen=True, slots=True)
class Judgement:
    """How good one network is.

    Attributes:
        name: `dense`, `small`, or that of a lowered file.
        quality: Its distance to the original, None for the original and where it was not measured.
        metric: What the user's metric says of it, None without one and where it gave no finite number.
        problem: Why something was not measured.
    """

    name: str
    quality: Quality | None = None
    metric: float | None = None
    problem: str = ""

    @property
    def text(self) -> str:
        """The metric, and what could not be measured, in a line; empty without either."""
        parts = [] if self.metric is None else [f"metric of {self.name}: {self.metric:.4f}"]
        return "; ".join(parts + ([f"{self.name} was not measured: {self.problem}"] if self.problem else []))

    @property
    def cells(self) -> dict[str, str]:
        """What the summary of a page shows of it."""
        shown = {} if self.metric is None else {"metric": f"{self.metric:.4f}"}
        if self.quality is not None:
            shown["differs from the original by"] = f"{self.quality.relative_error:.1%}"
            if self.quality.same_decisions is not None:
                shown["decides alike"] = f"{self.quality.same_decisions:.1%}"
        return shown

    def to_dict(self) -> dict[str, Any]:
        """The judgement as JSON data."""
        quality = None if self.quality is None else self.quality.to_dict()
        return {"quality": quality, "metric": self.metric, "problem": self.problem}


@dataclass(frozen=True, slots=True, eq=False)
class Judge:
    """Judges networks and files alike.

    Attributes:
        original: The original network.
        small: The compressed network.
        example_inputs: Inputs of both.
        inputs: What their outputs are compared on, None where there is nothing.
        metric: The user's measure, None without one.
    """

    original: GraphModule
    small: GraphModule
    example_inputs: ExampleInputs
    inputs: Judged | None
    metric: Metric | None

    def networks(self, found: SearchResult | None) -> dict[str, Judgement]:
        """The original and the compressed network; a search has judged them already."""
        quality = (record_of(self.small) or Record()).quality
        if found is not None:
            values: tuple[float | None, float | None] = (found.trials[0].metric, found.best.metric)
        elif self.metric is not None:
            values = (judged_by(self.metric, self.original), judged_by(self.metric, self.small))
        else:
            values = (None, None)
        dense, small = (None if value is None or math.isnan(value) else value for value in values)
        return {
            "dense": Judgement("dense", metric=dense),
            "small": Judgement("small", quality, small),
        }

    def file(self, path: Path, precision: str) -> Judgement:
        """A lowered file, by its own outputs; its distance to the original is written into it."""
        name = f"small.{precision}"
        record = record_of(self.small) or Record()
        least = LEAST_AGREEMENT if record.quality is None else record.quality.least_agreement
        quality, value, problem = None, None, ""
        try:
            network = FileNetwork(self.small, path, self.example_inputs)
            if self.inputs is not None:
                quality = quality_of(
                    self.original,
                    lambda batch: _outputs(network, batch),
                    self.inputs,
                    record.outcomes,
                    precision=precision,
                    least_agreement=least,
                )
            if quality is not None:
                describe_quality(path, quality)
            if self.metric is not None:
                value = mean_of(scores_of(self.metric, self.metric(network)))  # type: ignore[arg-type]
        except Exception as error:  # noqa: BLE001 - the user's metric, and whatever a file refuses
            problem = first_line(error)
        return Judgement(
            name, quality, value if value is not None and math.isfinite(value) else None, problem
        )


def _outputs(network: FileNetwork, batch: Batch) -> list[Tensor]:
    args, kwargs = call_arguments(batch)
    return float_leaves(network(*args, **kwargs))
