"""`Site`: one layer of a graph with all the places where it is applied, whatever the dialect."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor
from torch.fx import Node

from fxdecomp.layers import LayerSpec
from fxdecomp.outcomes import Skipped
from fxdecomp.reasons import Reason


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What one node says of the layer that it applies.

    Attributes:
        name: Qualified name of the layer.
        source: The node whose value the layer takes.
        geometry: The layer without its input size.
        weight: `[out_channels, in_channels // groups, *kernel]`, a view where possible.
        bias: `[out_channels]` or None.
        roots: Identities of the stored tensors that the weight is made of.
        bias_roots: The same of the bias.
        key: Two nodes with equal keys apply the same layer.
        trains: Whether gradients are wanted for the weight.
        bias_trains: Whether they are for the bias.
        besides: What else the layer stores: a recurrent layer's other weights and biases.
    """

    name: str
    source: Node
    geometry: LayerSpec
    weight: Tensor
    bias: Tensor | None
    roots: frozenset[int]
    bias_roots: frozenset[int]
    key: tuple[object, ...]
    trains: bool
    bias_trains: bool
    besides: tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """A node that applies a layer which cannot be decomposed; the geometry is there where it is known."""

    name: str
    layer: str
    reason: Reason
    detail: str = ""
    geometry: LayerSpec | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One place where a layer is applied.

    Attributes:
        node: The node that applies it.
        operand: Which of the node's inputs (`Node.all_input_nodes`) is the layer's.
        spec: The true geometry there.
    """

    node: Node
    operand: int
    spec: LayerSpec

    @property
    def source(self) -> Node:
        """The node of the layer's input, as the graph stands now: edits elsewhere may have replaced it."""
        return self.node.all_input_nodes[self.operand]


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """One layer, and every place in the graph where it is applied.

    Attributes:
        name: Qualified name of the layer.
        calls: The places, in the order of the graph.
        weight: `[out_channels, in_channels // groups, *kernel]`.
        bias: `[out_channels]` or None.
        params: Number of weights and biases, what an earlier layer shares left out.
        trains: Whether gradients are wanted for the weight, and so for the stages'.
        bias_trains: Whether they are for the bias; a bias that a chain adds trains as the weight does.
        bias_roots: Identities of the stored tensors that the bias is made of, which others may use too.
    """

    name: str
    calls: tuple[Call, ...]
    weight: Tensor
    bias: Tensor | None
    params: int
    trains: bool
    bias_trains: bool
    bias_roots: frozenset[int] = frozenset()

    @property
    def spec(self) -> LayerSpec:
        """The geometry at the first call; all calls differ in their input sizes only."""
        return self.calls[0].spec

    @property
    def specs(self) -> tuple[LayerSpec, ...]:
        """The geometry at each call."""
        return tuple(call.spec for call in self.calls)

    @property
    def macs(self) -> int:
        """Multiply-accumulates over all calls."""
        return sum(call.spec.macs for call in self.calls)

    def skipped(self, reason: Reason, detail: str = "") -> Skipped:
        """The outcome that leaves this site alone."""
        return Skipped(self.name, str(self.spec), reason, detail, self.params, self.macs)


def sized(geometry: LayerSpec, shape: tuple[int, ...] | None) -> LayerSpec | None:
    """The geometry on an input of a known shape, None where the shape is unknown or does not fit.

    Args:
        geometry: The layer without its input size.
        shape: Shape of the layer's input: `[..., features]` for a Linear, `[batch, channels, *size]` or
            `[channels, *size]` for a convolution, `[steps, features]` or with a batch for a recurrent layer.
    """
    if shape is None:
        return None
    axis = -1 if geometry.is_linear else -1 - geometry.ndim
    if len(shape) < -axis or shape[axis] != geometry.in_channels:
        return None
    positions = math.prod(shape[:axis])
    if geometry.recurrence is not None:
        if len(shape) not in (2, 3):
            return None
        steps = shape[1 if geometry.recurrence.batch_first and len(shape) == 3 else 0]
        return replace(geometry, positions=positions, recurrence=replace(geometry.recurrence, steps=steps))
    return replace(geometry, input_size=() if geometry.is_linear else shape[axis + 1 :], positions=positions)


def shape_of(node: Node) -> tuple[int, ...] | None:
    """The recorded shape of a node's value, None where it is unknown or not a tensor's."""
    recorded = node.meta.get("tensor_meta")
    shape = getattr(recorded, "shape", None)
    if shape is None:
        shape = getattr(node.meta.get("val"), "shape", None)
    if shape is None:
        return None
    sizes = [size if isinstance(size, int) else getattr(size.node, "hint", None) for size in shape]
    return (
        None
        if any(size is None for size in sizes)
        else tuple(int(size) for size in sizes if size is not None)
    )
