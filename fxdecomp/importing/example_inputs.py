"""Example inputs for a file that was read: what the user gives, else random ones that the file takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxdecomp.errors import ExportError
from fxdecomp.export.feeds import TYPES, make_feed, random_feed
from fxdecomp.export.metadata import read_metadata
from fxdecomp.export.sessions import open_session
from fxdecomp.export.tensor_runs import as_value, run_on_tensors
from fxdecomp.importing.building import identifier

_LENGTHS = {4: 224}
"""A length that an axis may well have, by the number of axes; for an example in a message."""

_KEEPING = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""Operators that leave whole numbers what they are."""


def given_inputs(declared: Any, path: Path, inputs: Mapping[str, Any] | Sequence[Any]) -> tuple[Any, ...]:
    """The user's own inputs in the order of the file, arrays as tensors.

    Raises:
        ExportError: They are not those that the file takes.
    """
    names = [item.name for item in declared]
    if isinstance(inputs, Mapping):
        words = {identifier(name): name for name in names}  # as the command line and the graph spell them
        inputs = {name if name in names else words.get(name, name): inputs[name] for name in inputs}
    if not isinstance(inputs, Mapping):
        if len(inputs) != len(names):
            raise ExportError(f"{path} takes {len(names)} inputs, {len(inputs)} were given")
        inputs = dict(zip(names, inputs, strict=True))
    if set(inputs) != set(names):
        raise ExportError(f"{path} takes the inputs {', '.join(names)}; given were {', '.join(inputs)}")
    values = [inputs[name] for name in names]
    return tuple(value if isinstance(value, Tensor) else as_value(value) for value in values)


def first_inputs(path: Path, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The first of many inputs, as many as a file takes at once, by name; none where they do not fit it.

    Args:
        path: The file.
        arrays: Inputs by the names of the file's own, or in their order, along the first axis.
    """
    try:
        declared = open_session(path).get_inputs()
    except Exception:  # noqa: BLE001 - `from_onnx` tells what is wrong with the file
        return {}
    named = {identifier(name): array for name, array in arrays.items()}
    words = [identifier(item.name) for item in declared]
    ordered = [named[word] for word in words] if set(words) <= set(named) else list(arrays.values())
    found = {}
    for item, array in zip(declared, ordered, strict=False):
        kind = np.dtype(TYPES.get(item.type, np.bool_))
        rows = item.shape[0] if item.shape and isinstance(item.shape[0], int) else 1
        first = array[:rows] if array.ndim else array
        lengths = [n for n, wanted in zip(first.shape, item.shape, strict=False) if isinstance(wanted, int)]
        fits = first.ndim == len(item.shape) and lengths == [n for n in item.shape if isinstance(n, int)]
        if not fits or (first.dtype.kind == "f") != (kind.kind == "f"):
            return {}
        found[item.name] = first.astype(kind)
    return found if len(found) == len(declared) else {}


def random_inputs(
    session: Any, path: Path, proto: Any, shapes: Sequence[tuple[int, ...]], seed: int
) -> tuple[Tensor, ...]:
    """Inputs drawn from a seed; whole numbers from the range that the file's own look-ups show.

    Args:
        session: A session of the file.
        path: The file.
        proto: The same as an `onnx.ModelProto`.
        shapes: Shapes in the order of the inputs, none for those that the file fixes or was made with.
        seed: Seed of the values.

    Raises:
        ExportError: ONNX Runtime runs none, or the shapes do not fit the file.
        BenchmarkError: The length of an axis is not known, or a type cannot be drawn.
    """
    declared = session.get_inputs()
    _check_shapes(declared, path, shapes)
    metadata = read_metadata(path)
    known = metadata.inputs if metadata else {}
    if not shapes:
        _check_lengths(declared, path, known)
    batch = next((shape[0] for shape in known.values() if shape), 1)
    limits = _limits(proto.graph)
    # zeros alone would hide most that is wrong; a table of one row takes nothing else
    tries: tuple[int | dict[str, int], ...] = (limits, 1, 0) if limits else (1, 0)
    for largest in tries:
        if shapes:
            feed = random_feed(declared, shapes, seed=seed, largest=largest)
        else:
            feed = make_feed(declared, batch=batch, axes={}, example_shapes=known, seed=seed, largest=largest)
        values = tuple(torch.from_numpy(feed[item.name]) for item in declared)
        try:
            run_on_tensors(session, values)
            return values
        except Exception as error:  # noqa: BLE001 - whatever the file raises, it takes nothing of the kind
            refusal = error
    given = {name: value.shape for name, value in feed.items()}
    raise ExportError(f"ONNX Runtime cannot run {path} on inputs {given}: {refusal}") from refusal


def _check_shapes(declared: Any, path: Path, shapes: Sequence[tuple[int, ...]]) -> None:
    if shapes and len(shapes) != len(declared):
        raise ExportError(f"{path} takes {len(declared)} inputs, {len(shapes)} shapes were given")
    for item, shape in zip(declared, shapes, strict=False):
        fixed = [a == b for a, b in zip(item.shape, shape, strict=False) if isinstance(a, int)]
        if not all(fixed) or len(item.shape) not in (0, len(shape)):  # an open number of axes reads as none
            raise ExportError(f"input {item.name!r} of {path} has shape {item.shape}; {shape} was given")


def _check_lengths(declared: Any, path: Path, known: Mapping[str, Sequence[int]]) -> None:
    """Refuse to draw inputs whose axes beside the batch are free, and of no length that is known."""
    for item in declared:
        free = [axis for axis, length in enumerate(item.shape) if axis and not isinstance(length, int)]
        if not free or len(known.get(item.name, ())) == len(item.shape):
            continue
        shapes = tuple(
            tuple(
                length if isinstance(length, int) else _LENGTHS.get(len(each.shape), 128) if axis else 1
                for axis, length in enumerate(each.shape)
            )
            for each in declared
        )
        raise ExportError(
            f"input {item.name!r} of {path} has shape {item.shape}, whose axes {free} may have any length; "
            f"give one, such as shapes={shapes}"
        )


def _limits(graph: Any) -> dict[str, int]:
    """The largest whole number that each input may hold, where its values are looked up in a constant."""
    sizes = {item.name: tuple(item.dims) for item in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            sizes[node.output[0]] = tuple(node.attribute[0].t.dims)
    origins = {item.name: item.name for item in graph.input if item.name not in sizes}
    limits: dict[str, int] = {}
    for item in graph.input:
        if item.type.tensor_type.elem_type in (2, 3):  # bytes
            limits[item.name] = 255 if item.type.tensor_type.elem_type == 2 else 127
    for node in graph.node:
        if node.op_type in _KEEPING and node.input and node.input[0] in origins:
            origins[node.output[0]] = origins[node.input[0]]
        if node.op_type != "Gather" or node.input[1] not in origins or node.input[0] not in sizes:
            continue
        axis = next((item.i for item in node.attribute if item.name == "axis"), 0)
        rows = int(np.asarray(sizes[node.input[0]])[axis])
        name = origins[node.input[1]]
        limits[name] = min(limits.get(name, rows - 1), rows - 1)
    return limits
