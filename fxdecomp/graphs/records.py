"""`Record`: what a graph carries about its own transformation, kept as JSON data on the GraphModule.

The data survive `copy.deepcopy` (through `gm.meta`) and pickling (through a plain attribute), and need
nothing of this package to be loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx import GraphModule

from fxdecomp.graphs.timed_plans import TimedPlan
from fxdecomp.outcomes import Applied, Folded, Narrowed, Outcome, Skipped
from fxdecomp.plans import Plan
from fxdecomp.quality import Quality
from fxdecomp.reasons import Reason

_KEY = "fxdecomp"
_ATTRIBUTE = "_fxdecomp_record"
_EXAMPLES = "fxdecomp_examples"


@dataclass(frozen=True, slots=True)
class Joint:
    """Layers that read one tensor, while they stand in the graph as one: theirs is the name of the first.

    Attributes:
        names: Qualified names of the layers, in the order of the graph.
        scales: What the outputs of each are multiplied with in there, so that an error matters alike.
    """

    names: tuple[str, ...]
    scales: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """The history of one graph.

    Attributes:
        traced_with: How the graph was made: `symbolic_trace`, `torch.export` or `given`.
        outcomes: Everything that holds weights exactly once; empty before the first transform.
        folds: What became of each BatchNorm.
        policy: The policy as JSON data, None before the first transform.
        notes: Sentences for the reader of the report.
        plan: Method and rank of every layer, None before the first transform.
        latency: What a budget of time predicted and measured, None without one.
        dropped_params: How many parameters went with folded BatchNorms, or because nothing used them.
        quality: How far the network is from the original, None where that was not measured.
        widths: The layers whose widths a policy names, and those that read them.
        joints: The layers that stand in the graph as one for the while of a transformation.
    """

    traced_with: str = "given"
    outcomes: tuple[Outcome, ...] = ()
    folds: tuple[Folded, ...] = ()
    policy: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    plan: Plan | None = None
    latency: TimedPlan | None = None
    dropped_params: int = 0
    quality: Quality | None = None
    widths: tuple[Narrowed, ...] = ()
    joints: tuple[Joint, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON data."""
        data = {
            "traced_with": self.traced_with,
            "outcomes": [_outcome_to_dict(outcome) for outcome in self.outcomes],
            "folds": [asdict(fold) for fold in self.folds],
            "policy": None if self.policy is None else dict(self.policy),
            "notes": list(self.notes),
            "plan": None if self.plan is None else self.plan.to_dict(),
            "latency": None if self.latency is None else self.latency.to_dict(),
            "dropped_params": self.dropped_params,
            "quality": None if self.quality is None else self.quality.to_dict(),
        }
        widths = {"widths": [asdict(width) for width in self.widths]} if self.widths else {}
        joints = {"joints": [asdict(joint) for joint in self.joints]} if self.joints else {}
        return data | widths | joints

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Record:
        """The inverse of `to_dict`."""
        return Record(
            traced_with=data["traced_with"],
            outcomes=tuple(_outcome_from_dict(item) for item in data["outcomes"]),
            folds=tuple(Folded(**item) for item in data["folds"]),
            policy=data["policy"],
            notes=tuple(data["notes"]),
            plan=None if data.get("plan") is None else Plan.from_dict(data["plan"]),
            latency=None if data.get("latency") is None else TimedPlan.from_dict(data["latency"]),
            dropped_params=data.get("dropped_params", 0),
            quality=None if data.get("quality") is None else Quality.from_dict(data["quality"]),
            widths=tuple(Narrowed(**item) for item in data.get("widths", ())),
            joints=tuple(
                Joint(tuple(item["names"]), tuple(item["scales"])) for item in data.get("joints", ())
            ),
        )


def _outcome_to_dict(outcome: Outcome) -> dict[str, Any]:
    """The outcome as JSON data, with its type under `outcome`."""
    return {"outcome": "applied" if isinstance(outcome, Applied) else "skipped"} | asdict(outcome)


def _outcome_from_dict(data: dict[str, Any]) -> Outcome:
    """The inverse of `_outcome_to_dict`."""
    fields = {key: value for key, value in data.items() if key != "outcome"}
    if data["outcome"] == "applied":
        lists = ("rank", "stages", "shares", "before_own")
        return Applied(**fields | {key: tuple(fields[key]) for key in lists if key in fields})
    return Skipped(**fields | {"reason": Reason(fields["reason"])})


def attach_record(gm: GraphModule, record: Record) -> None:
    """Store a record on a graph module, replacing the one that it has."""
    data = record.to_dict()
    gm.meta[_KEY] = data
    setattr(gm, _ATTRIBUTE, data)


def record_of(gm: GraphModule) -> Record | None:
    """The record of a graph module, None where it has none."""
    data = gm.meta.get(_KEY) or gm.__dict__.get(_ATTRIBUTE)
    return None if data is None else Record.from_dict(data)


def remember_examples(gm: GraphModule, inputs: Any) -> None:
    """Keep the inputs that a graph was traced with, where they are plain data; its copies share them."""
    leaves = pytree.tree_leaves(inputs)
    if all(leaf is None or type(leaf) in (Tensor, bool, int, float, str) for leaf in leaves):
        gm.meta[_EXAMPLES] = pytree.tree_map_only(Tensor, lambda leaf: leaf.detach().clone(), inputs)


def examples_of(gm: GraphModule) -> Any:
    """The inputs that a graph was traced with, None where they are not known."""
    return gm.meta.get(_EXAMPLES)
