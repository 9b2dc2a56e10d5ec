"""`FileNetwork`: an ONNX file with the inputs and outputs of the graph that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.fx import GraphModule

from fxdecomp.errors import ExportError, first_line
from fxdecomp.export.examples import as_inputs
from fxdecomp.export.parity import to_numpy
from fxdecomp.export.sessions import open_session
from fxdecomp.graphs.inputs import Arguments, ExampleInputs
from fxdecomp.graphs.untouched import evaluating, outputs_of


@final
class FileNetwork(nn.Module):
    """Runs a file in ONNX Runtime on the CPU where a network is called; it has no parameters of its own."""

    def __init__(self, gm: GraphModule, path: Path, example_inputs: ExampleInputs) -> None:
        """Open the file.

        Args:
            gm: The graph that the file was made from: it says how inputs and outputs are nested.
            path: The ONNX file.
            example_inputs: Inputs of the graph.
        """
        super().__init__()
        with evaluating(gm):
            self._leaves, self._structure = pytree.tree_flatten(outputs_of(gm, example_inputs))
        self._graph = [gm]  # in a list, so that it is no submodule
        self._session = open_session(path, threads=0)
        self._names = [value.name for value in self._session.get_inputs()]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The file's outputs, nested as the graph's.

        Raises:
            ExportError: ONNX Runtime cannot run the file on these inputs.
        """
        tensors = as_inputs(self._graph[0], Arguments(args, kwargs))[1]
        feed = dict(zip(self._names, map(to_numpy, tensors), strict=True))
        try:
            found = iter([torch.from_numpy(value.copy()) for value in self._session.run(None, feed)])
        except Exception as error:
            shapes = {name: value.shape for name, value in feed.items()}
            raise ExportError(f"ONNX Runtime cannot run the file on {shapes}: {first_line(error)}") from error
        leaves = [next(found) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        return pytree.tree_unflatten(leaves, self._structure)
