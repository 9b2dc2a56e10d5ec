"""Run ONNX files over batches: outputs, ranges of what lies between, and the distance of two results."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxdecomp.export.sessions import open_session

Feed = Mapping[str, NDArray[Any]]


def outputs_of(path: Path, feeds: Sequence[Feed], *, optimise: bool = True) -> list[list[NDArray[Any]]]:
    """The outputs of a file for every batch, on the CPU."""
    session = open_session(path, threads=0, optimise=optimise)
    return [session.run(None, dict(feed)) for feed in feeds]


def largest_by_channel(path: Path, axes: Mapping[str, int], feeds: Sequence[Feed]) -> dict[str, NDArray[Any]]:
    """Largest magnitude of every channel of some inner values, over all batches.

    Args:
        path: The ONNX file.
        axes: The axis that holds the channels, by name of the value.
        feeds: The batches.

    Returns:
        `[channels]` for each value.
    """
    found: dict[str, NDArray[Any]] = {}
    for values in _inner_values(path, list(axes), feeds):
        for name, value in zip(axes, values, strict=True):
            others = tuple(axis for axis in range(value.ndim) if axis != axes[name] % value.ndim)
            largest = np.abs(value).max(axis=others)
            found[name] = np.maximum(found[name], largest) if name in found else largest
    return found


def overflowing_nodes(path: Path, feeds: Sequence[Feed], limit: float) -> set[str]:
    """Names of the nodes that read or give a floating-point value above a limit on some batch."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    given = [output for node in graph.node for output in node.output if output]
    large: set[str] = {name for feed in feeds for name, value in feed.items() if _exceeds(value, limit)}
    for values in _inner_values(path, given, feeds):
        large |= {name for name, value in zip(given, values, strict=True) if _exceeds(value, limit)}
    return {node.name for node in graph.node if large & {*node.input, *node.output}}


def _exceeds(value: NDArray[Any] | list[Any], limit: float) -> bool:
    if isinstance(value, list):  # a sequence of tensors
        return any(_exceeds(each, limit) for each in value)
    return value.dtype.kind == "f" and value.size > 0 and bool(np.abs(value).max() > limit)


def _inner_values(path: Path, names: Sequence[str], feeds: Sequence[Feed]) -> Iterator[list[NDArray[Any]]]:
    """Values inside a model, batch by batch."""
    import onnx

    if not names:
        return
    model = onnx.load(str(path), load_external_data=False)
    present = {item.name for item in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in present
    )
    opened = path.with_name(f"{path.name}.opened")  # beside the original: external data are found by folder
    onnx.save(model, str(opened))
    try:
        session = open_session(opened, threads=0)
        for feed in feeds:
            yield session.run(list(names), dict(feed))
    finally:
        opened.unlink()


def relative_distance(
    wanted: Sequence[Sequence[NDArray[Any]]], got: Sequence[Sequence[NDArray[Any]]]
) -> float:
    """`||got - wanted|| / ||wanted - mean||` over all batches; the largest among the floating-point outputs.

    An output that is constant is measured against its own size. A model whose outputs are all integers is
    judged by the share of entries that differ.
    """
    distances = []
    floating = [index for index, value in enumerate(wanted[0]) if value.dtype.kind == "f"]
    for index in floating:
        a = np.concatenate([row[index].astype(np.float64).ravel() for row in wanted])
        b = np.concatenate([row[index].astype(np.float64).ravel() for row in got])
        scale = np.linalg.norm(a - a.mean()) or np.linalg.norm(a) or 1.0
        distance = float(np.linalg.norm(b - a) / scale)
        distances.append(distance if math.isfinite(distance) else math.inf)
    if not floating:
        differ = [
            np.mean(x != y) for a, b in zip(wanted, got, strict=True) for x, y in zip(a, b, strict=True)
        ]
        distances.append(float(np.mean(differ)))
    return max(distances)
