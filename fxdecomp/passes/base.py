"""What a pass is: a function from graph module to graph module that leaves its input as it was."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch.fx import GraphModule

from fxdecomp.errors import PassError
from fxdecomp.graphs.copies import copy_sharing_tensors
from fxdecomp.graphs.records import Record, attach_record, record_of


class Pass(ABC):
    """One graph transformation. Subclasses are final frozen dataclasses; `call` edits a copy in place."""

    name: ClassVar[str]

    @abstractmethod
    def call(self, gm: GraphModule, record: Record) -> Record:
        """Edit `gm`, a copy that this pass may change, and return what is to be recorded on it."""

    def __call__(self, gm: GraphModule) -> GraphModule:
        """The transformed copy of `gm`; unchanged tensors are shared with it.

        Raises:
            PassError: The pass left a graph that does not hold together.
        """
        with torch.inference_mode(False):  # whose tensors can never train
            result = copy_sharing_tensors(gm)
            record = self.call(result, record_of(gm) or Record())
        try:
            result.graph.lint()
            result.recompile()
        except Exception as error:
            raise PassError(f"pass {self.name} left a broken graph: {error}") from error
        attach_record(result, record)
        return result
