"""Inputs for a file that is timed: shapes from the file, values from a seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxdecomp.errors import BenchmarkError

TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}
"""The types that an input may have and numpy has, by the name that ONNX Runtime calls them."""

_LARGEST = 1 << 36
"""Numbers of an input that is drawn; real ones have millions."""


def fixed_batch(declared: Any) -> int | None:
    """The batch size that a session's inputs fix, None where it is free."""
    shape = declared[0].shape if declared else []
    return shape[0] if shape and isinstance(shape[0], int) else None


def make_feed(
    declared: Any,
    *,
    batch: int,
    axes: Mapping[str, int],
    example_shapes: Mapping[str, tuple[int, ...]],
    seed: int = 0,
    largest: int | Mapping[str, int] = 0,
) -> dict[str, NDArray[Any]]:
    """Random inputs for a session; see `random_feed`.

    Args:
        declared: `session.get_inputs()`.
        batch: Length of a free first axis that `axes` does not name.
        axes: Lengths of free axes, by the name of their symbol.
        example_shapes: Shapes of the example that the file was made with, by input; they settle free axes
            that `axes` does not.
        seed: Seed of the values.
        largest: Integers and flags are drawn from 0 to this one, 1 where it names an input not.

    Raises:
        BenchmarkError: If the length of a free axis is not known, or a type cannot be made.
    """

    def length_of(item: Any, axis: int, length: int | str) -> int:
        example = example_shapes.get(item.name, ())
        if isinstance(length, int):
            return length
        if length in axes:
            return axes[length]
        if axis == 0:
            return batch
        if axis < len(example):
            return example[axis]
        raise BenchmarkError(
            f"input {item.name!r} has shape {item.shape}: axis {axis} ({length!r}) has no length; "
            f"give it with axes={{{length!r}: ...}}, or give whole inputs"
        )

    shapes = [tuple(length_of(item, *pair) for pair in enumerate(item.shape)) for item in declared]
    return random_feed(declared, shapes, seed=seed, largest=largest)


def random_feed(
    declared: Any,
    shapes: Sequence[tuple[int, ...]],
    *,
    seed: int = 0,
    largest: int | Mapping[str, int] = 0,
) -> dict[str, NDArray[Any]]:
    """Random inputs of given shapes: normal for floating-point types, by default zeros for the others.

    Args:
        declared: `session.get_inputs()`.
        shapes: A shape for each.
        seed: Seed of the values.
        largest: Integers and flags are drawn from 0 to this one.

    Raises:
        BenchmarkError: If a type cannot be made.
    """
    generator = np.random.default_rng(seed)
    feed: dict[str, NDArray[Any]] = {}
    for item, shape in zip(declared, shapes, strict=True):
        if item.type not in TYPES:
            raise BenchmarkError(f"input {item.name!r} is a {item.type}; give the inputs yourself")
        dtype = np.dtype(TYPES[item.type])
        if math.prod(shape) > _LARGEST:
            raise BenchmarkError(f"input {item.name!r} has shape {shape}, more numbers than can be drawn")
        whole = dtype.kind != "f"
        end = largest if isinstance(largest, int) else largest.get(item.name, 1)
        values = generator.integers(end + 1, size=shape) if whole else generator.standard_normal(shape)
        feed[item.name] = np.asarray(values).astype(dtype)
    return feed
