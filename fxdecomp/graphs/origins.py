"""The file that a graph was read from, kept on the GraphModule as its record is."""

from __future__ import annotations

from typing import Any, Protocol

from torch.fx import GraphModule

_ATTRIBUTE = "_fxdecomp_origin"
VALUE = "onnx_value"
"""Where a node of the original graph keeps the name of the file's value that it computes."""
LAYER = "onnx_layer"
"""Where the call of a recurrent layer keeps the names of the file's values that its weights came from."""


class Origin(Protocol):
    """An ONNX file as it was read."""

    @property
    def data(self) -> bytes:
        """The file's bytes, without data that it keeps in other files."""

    @property
    def in_one_file(self) -> bool:
        """Whether its weights are in the file itself."""

    @property
    def tolerance(self) -> float | None:
        """Largest relative difference of an output that passes, None for that of its type."""

    def model(self) -> Any:
        """The file as an `onnx.ModelProto`, with its weights."""

    def graph(self) -> GraphModule:
        """The file as a graph, made anew: the same nodes by the same names, with `VALUE` in their meta."""


def attach_origin(gm: GraphModule, origin: Origin) -> None:
    """Remember the file that a graph was read from; copies of the graph share it."""
    gm.meta[_ATTRIBUTE] = _Shared(origin)
    setattr(gm, _ATTRIBUTE, origin)


def origin_of(gm: GraphModule) -> Origin | None:
    """The file that a graph was read from, None where it was not."""
    held = gm.meta.get(_ATTRIBUTE)
    found: Origin | None = held.origin if isinstance(held, _Shared) else gm.__dict__.get(_ATTRIBUTE)
    return found


class _Shared:
    """Holds what copies of a graph share."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self
