"""What a pass is: a function from graph module to graph module that leaves its input as it was."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch.fx import GraphModule

from fxdecomp.errors import FxdecompError, PassError, first_line
from fxdecomp.graphs.copies import copy_sharing_tensors
from fxdecomp.graphs.records import Record, attach_record, record_of
from fxdecomp.graphs.untouched import unchanged_buffers
from fxdecomp.outcomes import Applied


class Pass(ABC):
    """One graph transformation: what it requires of a graph, what it does, what it ensures.

    Subclasses are final frozen dataclasses; `call` edits a copy in place. A second run finds nothing to do.

    Attributes:
        name: For messages.
    """

    name: ClassVar[str]

    def requires(self, gm: GraphModule) -> None:
        """Raise `FxdecompError` where a graph is none for this pass: by default, where it is broken."""
        if problem := _broken(gm):
            raise FxdecompError(f"the graph that {self.name} got does not hold together: {problem}")

    @abstractmethod
    def call(self, gm: GraphModule, record: Record) -> Record:
        """Edit `gm`, a copy that this pass may change, and return what is to be recorded on it."""

    def ensures(self, gm: GraphModule, record: Record) -> None:
        """Raise `PassError` where the result is not what this pass promises.

        By default: the graph holds together, and the stages that are recorded stand in it.
        """
        problem = _broken(gm)
        if not problem:
            targets = {str(node.target) for node in gm.graph.nodes}
            stages = (s for o in record.outcomes if isinstance(o, Applied) for s in o.stage_names)
            missing = [stage for stage in stages if stage not in targets]
            problem = f"it has no node {missing[0]}, which is recorded" if missing else ""
        if problem:
            raise PassError(f"pass {self.name} left a broken graph: {problem}")

    def __call__(self, gm: GraphModule) -> GraphModule:
        """The transformed copy of `gm`; unchanged tensors are shared with it.

        Raises:
            FxdecompError: The graph is none for this pass.
            PassError: The pass left a graph that does not hold together.
        """
        self.requires(gm)
        with torch.inference_mode(False), unchanged_buffers(gm):  # whose tensors can never train
            result = copy_sharing_tensors(gm)
            record = self.call(result, record_of(gm) or Record())
        self.ensures(result, record)
        result.recompile()
        attach_record(result, record)
        return result


def _broken(gm: GraphModule) -> str:
    """What does not hold together in a graph, and at which node; empty where all does."""
    try:
        gm.graph.lint()
    except (RuntimeError, ValueError, AttributeError, TypeError, AssertionError) as error:
        return first_line(error)
    return ""
