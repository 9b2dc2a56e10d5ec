"""What `symbolic_trace` makes of a network, and what is lost on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import GraphModule, Node

from fxdecomp.graphs.spelling import spell_keywords
from fxdecomp.graphs.untouched import unchanged_buffers
from fxdecomp.sites.modules import Layer, is_layer

_GRADIENTS = (
    "the network runs layers under torch.no_grad, the graph does not; "
    "freeze the parameters that recovery must not train"
)


@dataclass(frozen=True, slots=True)
class Symbolic:
    """A graph, or why there is none.

    Attributes:
        graph: The graph, or the error.
        lack: What another tracer would do better, as a verb phrase; empty for a graph without fault.
        notes: Sentences for the reader of the report.
    """

    graph: GraphModule | Exception
    lack: str = ""
    notes: tuple[str, ...] = ()


def traced_symbolically(model: nn.Module) -> Symbolic:
    """Trace a network in eval mode, whose buffers keep their values."""
    tracer = _Tracer()
    try:
        with unchanged_buffers(model):
            before = _buffer_versions(model)
            graph = tracer.trace(model)
            forgets = _buffer_versions(model) != before
        gm = GraphModule(tracer.root, graph, type(model).__name__).eval()  # the containers too, made anew
    except Exception as error:  # noqa: BLE001 - a model's own code runs here and may raise anything
        return Symbolic(error)
    lack = "keep what the network does to its buffers" if forgets else ""
    if _hides_layers(gm):
        lack = "show the layers inside modules"
    return Symbolic(gm, lack, (_GRADIENTS,) if tracer.stops_gradients else ())


class _Tracer(fx.Tracer):
    """Notes whether the network runs layers without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.stops_gradients = False
        self._with_gradients = torch.is_grad_enabled()

    def trace(self, *args: Any, **options: Any) -> fx.Graph:
        graph = super().trace(*args, **options)  # also as a pickled graph is read again
        spell_keywords(graph)
        return graph

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> Node:
        stopped = self._with_gradients and not torch.is_grad_enabled()
        self.stops_gradients |= stopped and kind in ("call_module", "get_attr")
        return super().create_node(kind, *args, **kwargs)


def _buffer_versions(model: nn.Module) -> list[tuple[int, int]]:
    """Differs after any change of a buffer, in place or to another tensor."""
    buffers = [buffer for module in model.modules() for buffer in module._buffers.values()]
    return [
        (id(buffer), buffer._version if isinstance(buffer, Tensor) and not buffer.is_inference() else 0)
        for buffer in buffers
    ]


def _hides_layers(gm: GraphModule) -> bool:
    """Whether a leaf module of the graph holds layers that the graph does not show."""
    leaves = (gm.get_submodule(str(node.target)) for node in gm.graph.nodes if node.op == "call_module")
    return any(
        isinstance(module, Layer) for leaf in leaves if not is_layer(leaf) for module in leaf.modules()
    )
