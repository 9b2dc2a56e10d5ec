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
    if not isinstance(equation, str):
        return 0
    lengths: dict[str, int] = {}
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    for term, operand in zip(terms, operands, strict=False):
        shape = shape_of(operand) if isinstance(operand, Node) else None
        names = None if shape is None else _axes(term, len(shape))
        if shape is None or names is None:
            return 0
        for name, length in zip(names, shape, strict=True):
            lengths[name] = max(length, lengths.get(name, 1))  # an axis of 1 goes along with any other
    return math.prod(lengths.values())


def _axes(term: str, ndim: int) -> list[str] | None:
    """The name of each axis of an operand, None where they do not fit; `...` counts its axes from the end."""
    first, dots, last = term.partition("...")
    hidden = ndim - len(first) - len(last)
    if hidden < 0 or (hidden and not dots):
        return None
    return [*first, *(f"...{place}" for place in reversed(range(hidden))), *last]
