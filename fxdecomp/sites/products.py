"""Multiply-accumulates of products of tensors that are no layer: `matmul`, `bmm`, `einsum`."""

from __future__ import annotations

import math

from torch.fx import Node

from fxdecomp.sites.base import shape_of

_SUMMED = {"matmul": 0, "mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1, "linear": 0, "mv": 0}
"""Which argument of a product has the summed axis as its last one."""


def product_macs(node: Node, kind: str) -> int:
    """Multiply-accumulates of one product, 0 where the shapes or the kind are not known.

    Args:
        node: The node of the product.
        kind: Its name, such as `matmul` or `einsum`.

    Example:
        >>> import torch, fxdecomp
        >>> class Product(torch.nn.Module):
        ...     def forward(self, x, y):
        ...         return torch.einsum("ij,jk->ik", x, y)
        >>> gm = fxdecomp.trace(Product(), (torch.ones(2, 3), torch.ones(3, 4)))
        >>> [product_macs(node, "einsum") for node in gm.graph.nodes if node.op == "call_function"]
        [24]
    """
    if kind == "einsum":
        return _einsum_macs(node)
    index = _SUMMED.get(kind)
    if index is None or index >= len(node.args) or not isinstance(node.args[index], Node):
        return 0
    summed, result = shape_of(node.args[index]), shape_of(node)  # type: ignore[arg-type]  # checked above
    return math.prod(result) * summed[-1] if summed and result is not None else 0


def _einsum_macs(node: Node) -> int:
    """The product of the lengths of all axes that the equation names."""
    equation, *operands = node.args
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = list(operands[0])
    if not isinstance(equation, str) or "." in equation:
        return 0
    lengths: dict[str, int] = {}
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    for term, operand in zip(terms, operands, strict=False):
        shape = shape_of(operand) if isinstance(operand, Node) else None
        if shape is None or len(shape) != len(term):
            return 0
        lengths |= dict(zip(term, shape, strict=True))
    return math.prod(lengths.values())
