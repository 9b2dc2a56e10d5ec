"""The contract of a pass: what it requires, what it ensures, and that its input stays as it was."""

from dataclasses import dataclass
from typing import ClassVar, final

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import fxdecomp
from fxdecomp import FxdecompError, PassError, Policy
from fxdecomp.graphs.records import Record
from fxdecomp.passes import FoldBatchNorm
from fxdecomp.passes.base import Pass
from tests.contract import checked


@final
@dataclass(frozen=True, slots=True)
class Forgets(Pass):
    """Deletes what a node asks for."""

    name: ClassVar[str] = "forgets"

    def call(self, gm: GraphModule, record: Record) -> Record:
        del gm.fc
        return record


@final
@dataclass(frozen=True, slots=True)
class Removes(Pass):
    """Takes a recorded stage out of the graph."""

    name: ClassVar[str] = "removes"

    def call(self, gm: GraphModule, record: Record) -> Record:
        node = next(node for node in gm.graph.nodes if "out" in str(node.target))
        node.replace_all_uses_with(node.args[0])
        gm.graph.erase_node(node)
        return record


@final
@dataclass(frozen=True, slots=True)
class Writes(Pass):
    """Writes to its input's weights."""

    name: ClassVar[str] = "writes"

    def call(self, gm: GraphModule, record: Record) -> Record:
        with torch.no_grad():
            gm.fc.weight.add_(1)
        return record


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x).relu()


@pytest.fixture
def gm() -> GraphModule:
    return fxdecomp.trace(Net(), torch.randn(2, 32))


def test_a_graph_that_a_pass_breaks_is_its_error_and_names_the_node(gm: GraphModule) -> None:
    with pytest.raises(PassError, match=r"pass forgets left a broken graph: .*Node fc "):
        Forgets()(gm)
    small = fxdecomp.transform(gm, Policy(rules=[fxdecomp.Rule("fc", "svd", 4)]))
    (row,) = fxdecomp.report(small).applied
    with pytest.raises(PassError, match=f"it has no node {row.stage_names[-1]}, which is recorded"):
        Removes()(small)


def test_a_graph_that_was_broken_before_is_not_the_error_of_the_pass(gm: GraphModule) -> None:
    del gm.fc
    with pytest.raises(FxdecompError, match=r"graph that fold_batch_norm got .*Node fc ") as told:
        FoldBatchNorm()(gm)
    assert not isinstance(told.value, PassError)


def test_a_pass_that_writes_to_its_input_is_seen(gm: GraphModule) -> None:
    with pytest.raises(AssertionError, match="writes changed the graph that it was given"):
        checked(Pass.__call__)(Writes(), gm)


def test_a_pass_that_is_not_done_at_once_is_seen(gm: GraphModule, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(self: FoldBatchNorm, gm: GraphModule, record: Record) -> Record:
        gm.fc.weight = nn.Parameter(gm.fc.weight.detach() + 1)
        return record

    monkeypatch.setattr(FoldBatchNorm, "call", call)
    with pytest.raises(AssertionError, match="fold_batch_norm is not done at once"):
        checked(Pass.__call__)(FoldBatchNorm(), gm)
