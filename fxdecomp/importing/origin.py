"""`OnnxOrigin`: an ONNX file as it was read, from which its graph can be made again, node by node."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.fx import GraphModule

from fxdecomp.errors import ExportError
from fxdecomp.graphs.origins import VALUE
from fxdecomp.importing.converting import converted
from fxdecomp.importing.preparing import prepared


@dataclass(frozen=True, slots=True, eq=False)
class OnnxOrigin:
    """An ONNX file.

    Attributes:
        name: What it is called in messages.
        data: Its bytes.
        folder: Where data lie that it keeps in other files.
    """

    name: str
    data: bytes
    folder: str

    @staticmethod
    def of(path: Path) -> OnnxOrigin:
        """Read a file."""
        return OnnxOrigin(str(path), path.read_bytes(), str(path.parent.absolute()))

    @property
    def in_one_file(self) -> bool:
        """Whether its weights are in the file itself."""
        return not any(map(_is_elsewhere, self._bare().graph.initializer))

    def model(self) -> Any:
        """The file as an `onnx.ModelProto`, with its weights.

        Raises:
            ExportError: It is no model, or data that it keeps in other files are not there any more.
        """
        from onnx.external_data_helper import load_external_data_for_model

        proto = self._bare()
        try:
            load_external_data_for_model(proto, self.folder)
        except Exception as error:
            raise ExportError(f"{self.name} cannot be read as an ONNX model: {error}") from error
        return proto

    def graph(self) -> GraphModule:
        """The file as a graph; nodes that compute a value of the file keep its name in their meta."""
        proto = self.model()
        known = {item.name for item in proto.graph.input}
        known |= {name for node in proto.graph.node for name in node.output if name}
        gm = converted(prepared(proto, self.name), self.name)
        for node in gm.graph.nodes:
            names = [name for name in node.meta.pop(VALUE, ()) if name in known]
            if names:
                node.meta[VALUE] = names[0]
        return gm

    def _bare(self) -> Any:
        import onnx

        try:
            return onnx.load_model_from_string(self.data)
        except Exception as error:
            raise ExportError(f"{self.name} cannot be read as an ONNX model: {error}") from error


def _is_elsewhere(tensor: Any) -> bool:
    return bool(tensor.data_location == type(tensor).EXTERNAL)
