"""Conditions on sizes as text, read and computed without ever being run as Python.

`(x.shape[0] * 4) % 3 != 0` is parsed, and only comparisons of sizes and arithmetic on them are taken:
numbers, values of names, their `.shape`, `.stride()` and `.storage_offset()`, and a few functions of numbers.
Any other text is refused, wherever it comes from: a file may hold any.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypeAlias

from torch.fx.experimental.symbolic_shapes import SYMPY_INTERP

_LONGEST = 20_000
"""Characters; a condition of a network has hundreds."""
_POWER = 64
"""Largest exponent: sizes are squared and cubed, and nothing else; `9 ** 9 ** 9` would never end."""

_Compute: TypeAlias = Callable[[Mapping[str, Any]], Any]
"""An expression made ready: from the values of its names to its own."""

_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.Not: operator.not_,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_COMPARED: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "max": max,
    "min": min,
    "abs": abs,
    "int": int,
    "float": float,
    "bool": bool,
    "round": round,
    "math.floor": math.floor,
    "math.ceil": math.ceil,
    "math.trunc": math.trunc,
    "math.sqrt": math.sqrt,
    "math.isnan": math.isnan,
    "IsNonOverlappingAndDenseIndicator": SYMPY_INTERP["IsNonOverlappingAndDenseIndicator"],  # type: ignore[dict-item]
}
_CONSTANTS: Mapping[str, float] = {"math.inf": math.inf, "math.nan": math.nan}
_OF_TENSORS = ("size", "stride", "storage_offset")


class NotOfSizes(ValueError):  # noqa: N818 - the reason, which its callers put into an error of their own
    """Why a text is no comparison of sizes."""


def check_sizes(text: str) -> None:
    """Raise `NotOfSizes` where a text is anything but a comparison of sizes."""
    _compiled(text)


def evaluate_sizes(text: str, values: Mapping[str, Any]) -> Any:
    """The value of an expression of sizes.

    Args:
        text: Such as `x.shape[0] % 4 == 0`.
        values: Tensors and numbers by name; sizes may be symbolic.

    Raises:
        NotOfSizes: The text is something else, or names what is not among the values.

    Example:
        >>> evaluate_sizes("(rows + 1) % 4 == 0", {"rows": 7})
        True
    """
    return _compiled(text)(values)


@lru_cache(maxsize=4096)
def _compiled(text: str) -> _Compute:
    if len(text) > _LONGEST:
        raise NotOfSizes(f"it has {len(text)} characters, at most {_LONGEST} are taken")
    try:
        return _of(ast.parse(text.strip(), mode="eval").body)
    except NotOfSizes:
        raise
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise NotOfSizes("it cannot be parsed") from error


def _of(node: ast.AST) -> _Compute:
    """The computation that a node stands for."""
    kind = _KINDS.get(type(node))
    compute = None if kind is None else kind(node)
    if compute is None:
        raise NotOfSizes(f"it holds {ast.unparse(node)[:60]!r}")
    return compute


def _constant(node: ast.Constant) -> _Compute | None:
    value = node.value
    return (lambda _: value) if value is None or isinstance(value, int | float | str) else None


def _name(node: ast.Name) -> _Compute:
    def compute(values: Mapping[str, Any]) -> Any:
        if node.id not in values:
            raise NotOfSizes(f"there is no input {node.id!r}")
        return values[node.id]

    return compute


def _binary(node: ast.BinOp) -> _Compute | None:
    function = _BINARY.get(type(node.op))
    if function is None:
        return None
    if isinstance(node.op, ast.Pow) and not _is_small(node.right):
        raise NotOfSizes(f"an exponent is no whole number up to {_POWER}")
    left, right = _of(node.left), _of(node.right)
    return lambda values: function(left(values), right(values))


def _is_small(node: ast.AST) -> bool:
    if isinstance(node, ast.UnaryOp):
        return _is_small(node.operand)
    return isinstance(node, ast.Constant) and isinstance(node.value, int) and node.value <= _POWER


def _unary(node: ast.UnaryOp) -> _Compute | None:
    function, operand = _UNARY.get(type(node.op)), _of(node.operand)
    return None if function is None else lambda values: function(operand(values))


def _boolean(node: ast.BoolOp) -> _Compute:
    operands, joined = [_of(value) for value in node.values], all if isinstance(node.op, ast.And) else any
    return lambda values: joined(operand(values) for operand in operands)


def _comparison(node: ast.Compare) -> _Compute | None:
    sides = [_of(side) for side in (node.left, *node.comparators)]
    if not all(type(op) in _COMPARED for op in node.ops):
        return None
    functions = [_COMPARED[type(op)] for op in node.ops]

    def compute(values: Mapping[str, Any]) -> bool:
        pairs = pairwise([side(values) for side in sides])
        return all(function(*pair) for function, pair in zip(functions, pairs, strict=True))

    return compute


def _choice(node: ast.IfExp) -> _Compute:
    test, first, second = _of(node.test), _of(node.body), _of(node.orelse)
    return lambda values: first(values) if test(values) else second(values)


def _attribute(node: ast.Attribute) -> _Compute | None:
    if ast.unparse(node) in _CONSTANTS:
        constant = _CONSTANTS[ast.unparse(node)]
        return lambda _: constant
    value = _of(node.value)
    return (lambda values: value(values).shape) if node.attr == "shape" else None


def _item(node: ast.Subscript) -> _Compute | None:
    match node.slice:
        case ast.Constant(value=int() as index):
            value = _of(node.value)
            return lambda values: value(values)[index]
    return None


def _call(node: ast.Call) -> _Compute | None:
    if node.keywords:
        return None
    match node.func:
        case ast.Attribute(tensor, method) if method in _OF_TENSORS and not node.args:
            value = _of(tensor)
            return lambda values: getattr(value(values), method)()
    function, args = _FUNCTIONS.get(ast.unparse(node.func)), [_of(argument) for argument in node.args]
    return None if function is None else lambda values: function(*(arg(values) for arg in args))


def _sequence(node: ast.List | ast.Tuple) -> _Compute:
    elements = [_of(element) for element in node.elts]
    return lambda values: [element(values) for element in elements]


_KINDS: Mapping[type[ast.AST], Callable[[Any], _Compute | None]] = {
    ast.Constant: _constant,
    ast.Name: _name,
    ast.BinOp: _binary,
    ast.UnaryOp: _unary,
    ast.BoolOp: _boolean,
    ast.Compare: _comparison,
    ast.IfExp: _choice,
    ast.Attribute: _attribute,
    ast.Subscript: _item,
    ast.Call: _call,
    ast.List: _sequence,
    ast.Tuple: _sequence,
}
