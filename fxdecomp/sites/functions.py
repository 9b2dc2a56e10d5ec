"""Reads call_function nodes: torch's functional layers and the aten operators of `torch.export`."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional as F  # noqa: N812

from fxdecomp.layers import LayerSpec
from fxdecomp.reasons import Reason
from fxdecomp.sites.base import Reading, Refusal, shape_of
from fxdecomp.sites.constants import Constant, Constants
from fxdecomp.sites.geometry import conv_geometry, linear_geometry
from fxdecomp.sites.modules import swapped_channels

aten = torch.ops.aten

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CONV_TRANSPOSE = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_CONVOLUTION = (
    "input",
    "weight",
    "bias",
    "stride",
    "padding",
    "dilation",
    "transposed",
    "output_padding",
    "groups",
)
_LINEAR = ("input", "weight", "bias")
_MATMUL = ("input", "matrix")
_ADDMM = ("bias", "input", "matrix")

_SIGNATURES: dict[Any, tuple[str, ...]] = {
    **dict.fromkeys(
        [
            torch.conv1d,
            torch.conv2d,
            torch.conv3d,
            aten.conv1d.default,
            aten.conv2d.default,
            aten.conv3d.default,
            aten.conv1d.padding,
            aten.conv2d.padding,
            aten.conv3d.padding,
        ],
        _CONV,
    ),
    **dict.fromkeys(
        [
            torch.conv_transpose1d,
            torch.conv_transpose2d,
            torch.conv_transpose3d,
            aten.conv_transpose1d.default,
            aten.conv_transpose2d.input,
            aten.conv_transpose3d.input,
        ],
        _CONV_TRANSPOSE,
    ),
    aten.convolution.default: _CONVOLUTION,
    **dict.fromkeys([F.linear, aten.linear.default], _LINEAR),
    **dict.fromkeys([torch.mm, torch.matmul, operator.matmul, aten.mm.default, aten.matmul.default], _MATMUL),
    **dict.fromkeys([torch.bmm, aten.bmm.default], _MATMUL),
    **dict.fromkeys([torch.addmm, aten.addmm.default], _ADDMM),
}
_OTHER_NAMES: dict[tuple[str, ...], dict[str, str]] = {
    _MATMUL: {"self": "input", "mat2": "matrix", "other": "matrix"},
    _ADDMM: {"self": "bias", "input": "bias", "mat1": "input", "mat2": "matrix"},
}
"""What torch calls the arguments of a product when they are given by name."""
_REPEATED = frozenset([aten.expand.default, aten.view.default, aten.reshape.default, aten.clone.default])
"""Through which a matrix goes that a batched product applies to every example."""
_TRANSPOSED = frozenset(target for target, names in _SIGNATURES.items() if names is _CONV_TRANSPOSE)


def is_layer_call(node: Node) -> bool:
    """Whether a node calls one of torch's functional layers; products of matrices may be none."""
    return node.op == "call_function" and "weight" in _SIGNATURES.get(node.target, ())


def read_function_call(node: Node, constants: Constants) -> Reading | Refusal | None:
    """What a call_function node says of its layer, None where it is no layer.

    A matrix product is a layer only where its second operand is a constant matrix, and its first is none.
    """
    names = _SIGNATURES.get(node.target, ())
    other = _OTHER_NAMES.get(names, {})
    named = {other.get(name, name): value for name, value in node.kwargs.items()}
    arguments: dict[str, Any] = dict(zip(names, node.args, strict=False)) | named
    source = arguments.get("input")
    if not names or not isinstance(source, Node):
        return None
    by_matrix = "matrix" in names
    weight = _matrix(arguments["matrix"], constants) if by_matrix else constants.of(arguments["weight"])
    if by_matrix and not (weight and _is_plain(arguments, node, constants)):
        return None
    kind = getattr(node.target, "__name__", str(node.target))
    if weight is None:
        return Refusal(node.name, kind, Reason.COMPUTED_WEIGHT)
    if refused := _refused(node, weight.value, constants):
        return Refusal(_name(node, weight), kind, *refused)
    bias = constants.of(arguments.get("bias"))
    transposed = node.target in _TRANSPOSED or bool(arguments.get("transposed", False))
    groups = int(arguments.get("groups", 1))
    matrix = _canonical(weight.value, by_matrix=by_matrix, transposed=transposed, groups=groups)
    if arguments.get("bias") is not None and (bias is None or tuple(bias.value.shape) != (matrix.shape[0],)):
        return Refusal(node.name, kind, Reason.COMPUTED_WEIGHT, "the bias is not one constant per channel")
    geometry = _geometry(matrix, arguments, transposed=transposed, groups=groups)
    return Reading(
        name=_name(node, weight),
        source=source,
        geometry=geometry,
        weight=matrix,
        bias=None if bias is None else bias.value,
        roots=weight.roots,
        bias_roots=frozenset() if bias is None else bias.roots,
        key=("function", weight.expression, bias and bias.expression, geometry),
        trains=weight.trains,
        bias_trains=bias is not None and bias.trains,
    )


def _matrix(operand: Any, constants: Constants) -> Constant | None:
    """The one constant matrix that a product multiplies with, repeated for every example or not.

    A Linear on an input whose axes were moved becomes that product where torch.export decomposes it.
    """
    shape = shape_of(operand) if isinstance(operand, Node) else None
    single = operand
    while isinstance(single, Node) and len(shape_of(single) or ()) > 2 and single.target in _REPEATED:
        single = single.args[0]  # never computed: the copies for all examples take much memory
    found = constants.of(single)
    if found is None or found.value.ndim != 2:
        return None
    return found if shape is None or shape[-2:] == found.value.shape else None


def _is_plain(arguments: dict[str, Any], node: Node, constants: Constants) -> bool:
    scaled = arguments.get("alpha", 1) != 1 or arguments.get("beta", 1) != 1
    return not scaled and node not in constants


def _refused(node: Node, weight: Tensor, constants: Constants) -> tuple[Reason, str] | None:
    if 0 in weight.shape or weight.ndim < 2:
        what = "it has no elements" if 0 in weight.shape else "it is a vector"
        return Reason.UNSUPPORTED_TENSOR, what
    return (Reason.CONSTANT_INPUT, "") if node in constants else None


def _canonical(weight: Tensor, *, by_matrix: bool, transposed: bool, groups: int) -> Tensor:
    if by_matrix:
        return weight.T
    return swapped_channels(weight, groups) if transposed else weight


def _geometry(weight: Tensor, arguments: dict[str, Any], *, transposed: bool, groups: int) -> LayerSpec:
    out_channels, in_channels = weight.shape[:2]
    if weight.ndim == 2:
        return linear_geometry(in_channels, out_channels)
    return conv_geometry(
        in_channels * groups,
        out_channels,
        tuple(weight.shape[2:]),
        stride=arguments.get("stride", 1),
        padding=arguments.get("padding", 0),
        dilation=arguments.get("dilation", 1),
        groups=groups,
        transposed=transposed,
        output_padding=arguments.get("output_padding", 0),
    )


def _name(node: Node, weight: Constant) -> str:
    """`features.0.weight` names the site `features.0`, `attn.in_proj_weight` names `attn.in_proj`."""
    if weight.path is None:
        return node.name
    owner, _, leaf = weight.path.rpartition(".")
    stem = leaf.removesuffix("weight").rstrip("_.")
    return ".".join(part for part in (owner, stem) if part) or node.name
