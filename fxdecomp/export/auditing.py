"""What ONNX Runtime's CPU provider makes of convolutions: which are in its blocked layout, which are not.

Its fast float convolutions work on channels in blocks of 8 or 16 (NCHWc). A value changes layout through a
Reorder node. A 2-D convolution is left outside when its channels do not suit (`onnxruntime/core/optimizer/
nchwc_transformer.cc`): input channels that are no multiple of 4 (unless they are fewer than a block, which
are read as they are), or groups that do not fill blocks.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fxdecomp.errors import ExportError
from fxdecomp.export.kernels import find_layer
from fxdecomp.export.onnx_layers import OnnxLayer, OnnxLayers
from fxdecomp.export.sessions import open_session

_REORDERS = ("ReorderInput", "ReorderOutput")


@dataclass(frozen=True, slots=True)
class OutsideLayout:
    """A convolution that does not run in the blocked layout.

    Attributes:
        name: Site and stage.
        reason: Why, as far as its geometry tells.
    """

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class LayoutChange:
    """A node that the runtime put in to change the layout of a value.

    Attributes:
        op: ReorderInput (into blocks), ReorderOutput (out of them) or Transpose (int8: channels last and
            back).
        after: The layer or operator that gives the value; `input` for an input of the model.
        before: The layers or operators that take it; `output` for an output of the model.
    """

    op: str
    after: str
    before: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LayoutAudit:
    """The layouts in which a model's convolutions run.

    Attributes:
        blocked: Convolutions in the blocked layout.
        outside: Those that are not, and why.
        changes: The layout changes that the runtime put in.

    Example:
        >>> import tempfile, torch, fxdecomp
        >>> from pathlib import Path
        >>> gm = fxdecomp.trace(torch.nn.Sequential(torch.nn.Linear(64, 32)), torch.randn(1, 64))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "small.onnx"
        ...     _ = fxdecomp.export.to_onnx(gm, torch.randn(1, 64), path)
        ...     audit = fxdecomp.export.audit_layout(path)
        >>> print(type(audit).__name__)
        LayoutAudit
    """

    blocked: tuple[str, ...]
    outside: tuple[OutsideLayout, ...]
    changes: tuple[LayoutChange, ...]

    def to_dict(self) -> dict[str, Any]:
        """The audit as JSON data."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{len(self.blocked)} convolution(s) in the blocked layout, {len(self.outside)} outside of it"
        ]
        lines += [f"outside: {item.name}: {item.reason}" for item in self.outside]
        lines += [f"{item.op} between {item.after} and {', '.join(item.before)}" for item in self.changes]
        return "\n".join(lines)


def audit_layout(path: Path | str) -> LayoutAudit:
    """Let ONNX Runtime's CPU provider optimise a file for this machine, and look at what comes out.

    Args:
        path: The ONNX file.

    Raises:
        ExportError: If onnxruntime is missing or cannot load the file.

    Example:
        >>> import tempfile, torch, fxdecomp
        >>> from pathlib import Path
        >>> gm = fxdecomp.trace(torch.nn.Sequential(torch.nn.Linear(64, 32)), torch.randn(1, 64))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "small.onnx"
        ...     _ = fxdecomp.export.to_onnx(gm, torch.randn(1, 64), path)
        ...     audit = fxdecomp.export.audit_layout(path)
        >>> type(audit).__name__
        'LayoutAudit'
    """
    import onnx

    path = Path(path)
    layers = OnnxLayers(path)
    with tempfile.TemporaryDirectory() as folder:
        optimised = Path(folder) / "optimised.onnx"
        try:
            open_session(path, optimised_path=optimised)
        except ExportError:
            raise
        except Exception as error:
            raise ExportError(f"ONNX Runtime cannot load {path}: {error}") from error
        graph = onnx.load(str(optimised), load_external_data=False).graph
    blocked, outside = [], []
    for node in graph.node:
        layer = find_layer(node.name, layers)
        if layer is None or layer.op != "Conv" or node.op_type == "QLinearConv":
            continue
        if node.domain.endswith("nchwc"):
            blocked.append(layer.name)
        else:
            outside.append(OutsideLayout(layer.name, _reason(layer)))
    return LayoutAudit(tuple(blocked), tuple(outside), _changes(graph, layers))


def _reason(layer: OnnxLayer) -> str:
    outputs, inputs, *kernel = layer.weight_shape
    if len(kernel) != 2:
        return f"it has {len(kernel)} spatial axes, and only 2-D convolutions have the layout"
    if layer.groups > 1:
        return f"{outputs} channels in {layer.groups} groups do not fill blocks of 8 or 16"
    if inputs % 4:
        return f"{inputs} input channels are no multiple of 4; choose ranks that are (best of 16)"
    return "its geometry does not tell"


def _changes(graph: Any, layers: OnnxLayers) -> tuple[LayoutChange, ...]:
    producers = {output: node for node in graph.node for output in node.output}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def called(node: Any) -> str:
        layer = find_layer(node.name, layers)
        return layer.name if layer else node.op_type

    changes = []
    for node in graph.node:
        if node.op_type not in _REORDERS and not (
            node.op_type == "Transpose" and node.name not in layers.node_names
        ):
            continue
        before = tuple(called(item) for item in readers.get(node.output[0], [])) or ("output",)
        source = producers.get(node.input[0])
        changes.append(LayoutChange(node.op_type, called(source) if source else "input", before))
    return tuple(changes)
