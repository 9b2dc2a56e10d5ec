"""What every reduction promises of a second run, and of its plan."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch.fx import GraphModule

import fxdecomp
from fxdecomp import Plan, Policy


def assert_settled(gm: GraphModule, policy: Policy, data: Iterable[torch.Tensor] | None, path: Path) -> None:
    """A second transform changes nothing, and the plan, by way of a file, gives the same bit for bit."""
    small = fxdecomp.transform(gm, policy, calibration=data)
    told = fxdecomp.report(small)
    again = fxdecomp.transform(small, policy, calibration=data)
    assert fxdecomp.report(again).outcomes == told.outcomes
    told.plan.save(path)
    replayed = fxdecomp.transform(gm, Policy.from_plan(Plan.load(path)), calibration=data)
    for other in (again, replayed):
        assert other.state_dict().keys() == small.state_dict().keys()
        pairs = zip(other.state_dict().values(), small.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
