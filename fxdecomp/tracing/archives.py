"""What may lie in a `.pt2` file that is opened: data, and nothing that runs.

`torch.export.load` runs what a file says in four ways. It unpickles; it loads compiled libraries; it takes
sizes (`expr_str`) and, in a traced graph, conditions (`guards_code`) for Python; and it looks up operators by
a path that may lead anywhere (`torch.serialization.os.system`), while names of values become part of
generated Python. Here every record is looked at first, by the reader that torch itself uses. What is not
known to be data is refused.
"""

from __future__ import annotations

import ast
import io
import json
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fxdecomp.errors import TraceError, first_line
from fxdecomp.tracing.size_expressions import NotOfSizes, check_sizes

_NAMESPACES = frozenset({"aten", "prims", "quantized_decomposed", "torchvision"})
_HIGHER_ORDER = frozenset(
    {
        "associative_scan",
        "cond",
        "hints_wrapper",
        "map_impl",
        "out_dtype",
        "scan",
        "strict_mode",
        "while_loop",
        "wrap_with_autocast",
        "wrap_with_set_grad_enabled",
    }
)
_OF_NUMBERS = frozenset(
    f"{module}{name}"
    for module, names in {
        "math.": "ceil floor sqrt trunc",
        "torch.sym_": "float int ite max min not sqrt sum",
        "torch._sym_": "sqrt log2",
        "_operator.": "add and_ eq floordiv ge getitem gt le lshift lt mod mul ne neg or_ pos pow rshift sub "
        "truediv",
    }.items()
    for name in names.split()
)
# fmt: off
_SYMBOLIC = frozenset({
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Mod", "Max", "Min", "Abs", "floor",
    "ceiling", "Equality", "Eq", "Unequality", "Ne", "StrictLessThan", "LessThan", "StrictGreaterThan",
    "GreaterThan", "And", "Or", "Not", "ITE", "Piecewise", "ExprCondPair", "Tuple", "FloorDiv",
    "ModularIndexing", "Where", "PythonMod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv",
    "PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv", "IsNonOverlappingAndDenseIndicator",
    "TruncToFloat", "TruncToInt", "RoundToInt", "RoundDecimal", "ToFloat", "Identity",
})
# fmt: on
"""What sympy's `srepr` writes of sizes, and torch's own functions of them."""
_POWERS = ("Pow", "PowByNatural", "FloatPow")
_LARGEST_POWER = 64
_LARGEST_TENSOR = 1 << 40
"""Elements: a value that repeats one number takes no memory, and all time."""

_QUOTING = re.compile(r"[\"\\\x00-\x1f\x7f]")
_DATA_ONLY = (
    "load it yourself with torch.export.load if the file is your own, or pass --trust on the command line"
)


class _Refused(Exception):  # noqa: N818 - becomes an error about the whole file
    """What a file holds that is not data; the reason in words."""


def check_archive(path: Path) -> None:
    """Raise where a `.pt2` file holds anything but data.

    Args:
        path: The file; nothing in it is run.

    Raises:
        TraceError: It holds code, or what cannot be told from code; says where and what.
    """
    from torch.export.pt2_archive._package import PT2ArchiveReader  # which takes seconds to import

    try:
        with PT2ArchiveReader(str(path)) as reader:
            for name in reader.get_file_names():
                _check_record(name, partial(reader.read_bytes, name))
    except _Refused as reason:
        raise TraceError(f"{path} is refused: {reason}; {_DATA_ONLY}") from reason
    except Exception as error:
        raise TraceError(f"{path} is not a readable .pt2 file: {first_line(error)}") from error


def _check_record(name: str, read: Callable[[], bytes]) -> None:
    from torch.export.pt2_archive import constants as places

    if name.startswith(places.AOTINDUCTOR_DIR):
        raise _Refused(f"{name} is a compiled library, which runs as it is loaded")
    if name.startswith(places.MODELS_DIR):
        _check_model(name, json.loads(read()))
    elif name.startswith((places.WEIGHTS_DIR, places.CONSTANTS_DIR)) and name.endswith(".json"):
        _check_payloads(name, json.loads(read()))
    elif name.endswith(".pt") and not name.startswith(places.EXTRA_DIR):
        _check_pickle(name, read())


def _check_pickle(name: str, data: bytes) -> None:
    """Tensors and plain containers only: what torch.load takes with weights_only, and then torch does too."""
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        raise _Refused(
            f"{name} is a pickle of more than tensors and plain containers ({first_line(error)[:160]})"
        ) from error


def _check_payloads(name: str, data: Any) -> None:
    from torch.export.pt2_archive import constants as places

    for payload, entry in data["config"].items():
        if entry["use_pickle"] or entry["path_name"].startswith(
            (places.CUSTOM_OBJ_FILENAME_PREFIX, places.OPAQUE_OBJ_FILENAME_PREFIX)
        ):
            raise _Refused(f"{name} keeps {payload!r} as a pickle, which may run anything as it is read")


def _check_model(name: str, model: Any) -> None:
    """Go through all that a program says, once."""
    for guard in model.get("guards_code") or ():
        try:
            check_sizes(_without_paths(guard))
        except NotOfSizes as reason:
            problem = f"the condition {guard[:200]!r} in {name} is no comparison of sizes: {reason}"
            raise _Refused(problem) from reason
    for symbol in model.get("range_constraints") or ():
        _check_name(symbol, name)
    for key, value in _strings(model["graph_module"]):
        _check_string(key, value, name)
    for value, meta in model["graph_module"]["graph"]["tensor_values"].items():
        size = math.prod(axis.get("as_int", 1) for axis in meta["sizes"])
        if size > _LARGEST_TENSOR:
            why = f"the value {value!r} in {name} has {size:.0e} elements, which no run would finish"
            raise _Refused(why)


def _without_paths(guard: str) -> str:
    """`L['x'][0].size()` as `x.size()`: the paths of inputs hold the user's own keys."""
    return re.sub(r"\bL(\[('[^'\\]*'|\d+)\])+", "value", guard)


def _strings(data: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text with the name of the field that it is in; for the keys of dictionaries of values too."""
    if isinstance(data, str):
        yield key, data
    elif isinstance(data, Mapping):
        for name, value in data.items():
            if name in ("metadata", "as_string", "as_strings"):  # read as text alone
                continue
            if key.endswith("_values") or key == "as_string_to_argument":
                yield "name", name
            yield from _strings(value, name)
    elif isinstance(data, list):
        for value in data:
            yield from _strings(value, key)


def _check_string(key: str, text: str, where: str) -> None:
    if key == "expr_str":
        _check_symbolic(text, where)
    elif key in ("target", "as_operator"):
        _check_operator(text, where)
    elif key in ("in_spec", "out_spec"):
        _check_structure(json.loads(text), where)
    elif key in ("name", "as_name"):
        _check_name(text, where)
    elif key == "forward_arg_names":
        _check_name(text.lstrip("*"), where)
    elif _QUOTING.search(text):
        raise _Refused(f"the {key} {text[:80]!r} in {where} is no name")


def _check_name(text: str, where: str) -> None:
    """Names of values become names in generated Python."""
    if text and not text.isidentifier():
        raise _Refused(f"{text[:80]!r} in {where} stands for the name of a value and is none")


def _check_structure(data: Any, where: str) -> None:
    """The containers of inputs and outputs: keys of keyword arguments become names in Python as well."""
    if not isinstance(data, list) or len(data) != 2:
        raise _Refused(f"the structure of inputs in {where} cannot be read")
    if "__enum__" in json.dumps(data):
        raise _Refused(f"the structure of inputs in {where} imports a module by name")
    root = data[1]
    children = root.get("children_spec") or []
    if root.get("type") == "builtins.tuple" and len(children) == 2 and children[1]["type"] == "builtins.dict":
        for key in json.loads(children[1]["context"]):
            _check_name(str(key), where)


def _check_operator(text: str, where: str) -> None:
    """Operators of torch that work on tensors, and arithmetic on sizes."""
    if text in _OF_NUMBERS:
        return
    refused = _Refused(f"the operator {text[:80]!r} in {where} is none that works on tensors or sizes alone")
    parts = text.split(".")
    if parts[:2] != ["torch", "ops"] or not all(part.isidentifier() for part in parts):
        raise refused
    if parts[2] == "higher_order":
        if len(parts) != 4 or parts[3] not in _HIGHER_ORDER:
            raise refused
        return
    if len(parts) != 5 or parts[2] not in _NAMESPACES:
        raise refused
    try:
        found = operator.attrgetter(".".join(parts[2:]))(torch.ops)
    except AttributeError as error:
        raise refused from error
    files = isinstance(found, torch._ops.OpOverload) and any(
        argument.name == "filename" for argument in found._schema.arguments
    )
    if not isinstance(found, torch._ops.OpOverload) or files:
        raise refused


def _check_symbolic(text: str, where: str) -> None:
    """An expression of sizes as sympy writes it: calls of known functions on numbers and symbols."""
    try:
        tree = ast.parse(text, mode="eval")
        for node in ast.walk(tree):
            _check_symbolic_node(node)
    except (SyntaxError, ValueError, RecursionError, MemoryError, _Refused) as error:
        raise _Refused(f"the size {text[:80]!r} in {where} is no expression of sizes") from error


def _check_symbolic_node(node: ast.AST) -> None:
    match node:
        case ast.Call(ast.Name(name), args, keywords) if name in _SYMBOLIC:
            if name in _POWERS and not _is_small_power(args[1]):
                raise _Refused("a power without end")
            if any(not isinstance(keyword.value, ast.Constant) for keyword in keywords):
                raise _Refused("an assumption that is computed")
        case ast.Constant(value=str(text)):
            if not text.isidentifier() and not math.isfinite(float(text)):
                raise _Refused("a name that is none")
        case ast.Constant(value=bool() | int() | float()) | ast.Expression() | ast.keyword() | ast.Load():
            pass
        case ast.Name(name) if name in (*_SYMBOLIC, "true", "false") or re.fullmatch(r"[suz][a-z]*\d+", name):
            pass
        case ast.UnaryOp(ast.USub()) | ast.USub():
            pass
        case _:
            raise _Refused("no part of a size")


def _is_small_power(node: ast.AST) -> bool:
    numbers = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
    return all(isinstance(number, int) and abs(number) <= _LARGEST_POWER for number in numbers) and not any(
        isinstance(part, ast.Call) and getattr(part.func, "id", "") not in ("Integer", "Rational")
        for part in ast.walk(node)
    )
