"""What single nodes do to an axis of channels: keep every channel to itself, move the axis, or neither."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from fxdecomp.sites.base import shape_of
from fxdecomp.sites.modules import hooks_of

_ELEMENTWISE = frozenset(
    (
        *(
            "relu",
            "relu6",
            "gelu",
            "silu",
            "swish",
            "tanh",
            "sigmoid",
            "hardtanh",
            "hardswish",
            "hardsigmoid",
        ),
        *("leaky_relu", "leakyrelu", "elu", "selu", "celu", "softplus", "softsign", "mish", "logsigmoid"),
        *("abs", "neg", "square", "sqrt", "rsqrt", "exp", "log", "erf", "sin", "cos", "pow", "clamp", "clip"),
        *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "identity"),
        *("contiguous", "clone", "detach", "to", "_to_copy", "float", "half", "double", "reciprocal"),
    )
)
"""Functions, methods and modules of torch that treat every number alike."""

_TWO = frozenset(
    ("add", "sub", "mul", "div", "truediv", "maximum", "minimum", "iadd", "isub", "imul", "itruediv")
)
"""Those of two values."""

PRODUCTS = frozenset(("mul", "imul"))
"""Those of them that are nothing where one of both values is."""

_POOLS = frozenset(
    f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max", "lp") for n in (1, 2, 3)
) | frozenset(
    f"{kind}pool{n}d" for kind in ("max", "avg", "adaptiveavg", "adaptivemax", "lp") for n in (1, 2, 3)
)
_RESIZED = frozenset(("interpolate", "upsample", "upsample_nearest2d", "upsample_bilinear2d"))
_PADDED = frozenset(("pad", "constant_pad_nd"))
_FLAT = frozenset(("flatten", "squeeze", "unsqueeze"))
_SHAPED = frozenset(("reshape", "view", "_unsafe_view"))
_TURNED = frozenset(("transpose", "swapaxes", "permute"))
_ARRANGED = frozenset(
    ("t", "unsqueeze", "expand", "contiguous", "clone", "detach", "to", "_to_copy", "float")
) | frozenset(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3))


def operation_of(gm: GraphModule, node: Node) -> str:
    """The name of what a node does, the same in every dialect; empty where it is nothing of torch's own."""
    if node.op == "call_module":
        module = gm.get_submodule(str(node.target))
        own = type(module).__module__.startswith("torch.nn.modules") and not hooks_of(module)
        scaled = isinstance(module, nn.PReLU) and module.num_parameters == 1
        return "" if not own else "relu" if scaled else type(module).__name__.lower()
    if node.op == "call_method":
        return str(node.target).rstrip("_")
    if node.op != "call_function":
        return ""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.rpartition("::")[2].rstrip("_")
    return getattr(node.target, "__name__", "").rstrip("_")


def is_elementwise(name: str) -> bool:
    """Whether an operation of one value treats every number alike."""
    return name in _ELEMENTWISE


def is_arrangement(name: str) -> bool:
    """Whether an operation gives the numbers of one value in another shape, order or type, or padded."""
    return any(name in names for names in (_FLAT, _SHAPED, _TURNED, _PADDED, _ARRANGED))


def is_of_two(name: str) -> bool:
    """Whether an operation of two values treats every pair of numbers alike."""
    return name in _TWO


def axis_after(gm: GraphModule, node: Node, source: Node, axis: int) -> int | None:
    """Where an axis of channels is behind a node of one value, None where the channels do not stay apart.

    Args:
        gm: The graph.
        node: The node.
        source: The value that has the axis.
        axis: The axis there, from the front.
    """
    name, before, after = operation_of(gm, node), shape_of(source), shape_of(node)
    if before is None or after is None:
        return None
    behind = len(before) - 1 - axis
    if name == "mean":
        return _after_mean(node, len(before), axis)
    if name in _TURNED:
        return _after_turn(node, name, len(before), axis)
    if name in _PADDED:
        widths = node.args[1] if len(node.args) > 1 else ()
        apart = isinstance(widths, list | tuple) and len(widths) <= 2 * behind
    elif name in _POOLS or name in _RESIZED:
        spatial = int(name[-2]) if name in _POOLS else behind
        apart = axis == 1 and spatial == behind > 0
    elif name in _FLAT or name in _SHAPED:
        apart = after[: axis + 1] == before[: axis + 1]
        apart = apart and (name in _FLAT or _states_size(node, axis, before[axis]))
    else:
        apart = is_elementwise(name) and after == before
    return axis if apart else None


def narrow(gm: GraphModule, node: Node, axis: int, size: int) -> None:
    """Make a node that states the size of the axis of channels behind it state another one."""
    if operation_of(gm, node) in _SHAPED:
        sizes = list(_sizes(node))
        if sizes[axis] != -1:
            sizes[axis] = size
            node.args = (node.args[0], tuple(sizes))


def _sizes(node: Node) -> tuple[Any, ...]:
    """The sizes that a node is given, one by one or together."""
    given: Any = node.args[1:]
    return tuple(given[0]) if len(given) == 1 and isinstance(given[0], list | tuple) else tuple(given)


def _states_size(node: Node, axis: int, size: int) -> bool:
    """Whether the size of the axis is a number there, or left open."""
    sizes = _sizes(node)
    stated = sizes[axis] if axis < len(sizes) else None
    return not node.kwargs and isinstance(stated, int) and stated in (size, -1)


def reads_other_sizes(node: Node, axis: int) -> bool:
    """Whether a node only reads the size of another axis than that of the channels."""
    schema = getattr(node.target, "_schema", None)
    reads = node.target == "size" or (schema is not None and schema.name == "aten::sym_size")
    wanted = node.args[1] if len(node.args) > 1 else None
    return reads and isinstance(wanted, int) and 0 <= wanted != axis


def spreads_over(shape: tuple[int, ...] | None, ndim: int, axis: int) -> bool:
    """Whether a value of a shape is the same for all channels of one that has `ndim` axes."""
    if shape is None:
        return False
    place = len(shape) - (ndim - axis)
    return place < 0 or shape[place] == 1 or math.prod(shape) == 1


def _after_mean(node: Node, ndim: int, axis: int) -> int | None:
    """Behind a mean over axes that all follow that of the channels."""
    given: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    axes = (given,) if isinstance(given, int) else given
    if not isinstance(axes, list | tuple) or not all(isinstance(each, int) for each in axes):
        return None
    return axis if all(each % ndim > axis for each in axes) else None


def _after_turn(node: Node, name: str, ndim: int, axis: int) -> int | None:
    """Behind an exchange of two axes, or a new order of all."""
    given: Any = node.args[1:]
    if len(given) == 1 and isinstance(given[0], list | tuple):
        given = given[0]
    if node.kwargs or not all(isinstance(each, int) for each in given):
        return None
    order = [each % ndim for each in given]
    if name != "permute":
        order, (first, second) = list(range(ndim)), order
        order[first], order[second] = second, first
    return order.index(axis)
