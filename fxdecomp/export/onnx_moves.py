"""What ONNX is told of views and cuts of a graph whose sizes are others than in the file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch.fx import Node

from fxdecomp.export.matching import NotSpliceable
from fxdecomp.sites.base import shape_of


def stated_sizes(node: Node) -> NDArray[np.int64]:
    """The sizes that a reshape states, the one that is open or computed as -1.

    Raises:
        NotSpliceable: More than one is not known, or they are not given together.
    """
    sizes = node.args[1] if len(node.args) == 2 else None
    if not isinstance(sizes, Sequence) or node.kwargs:
        raise NotSpliceable(f"{node.name!r} is given sizes that are computed")
    known = [size if isinstance(size, int) else -1 for size in sizes]
    if known.count(-1) > 1 or 0 in known:
        raise NotSpliceable(f"{node.name!r} is given sizes that are computed")
    return np.asarray(known, np.int64)


def stated_part(node: Node) -> dict[str, NDArray[np.int64]]:
    """Start, end and axis of a part of a value.

    Raises:
        NotSpliceable: They are computed.
    """
    source, *numbers = node.args
    shape = shape_of(source) if isinstance(source, Node) else None
    if shape is None or len(numbers) != 3 or not all(isinstance(each, int) for each in numbers):
        raise NotSpliceable(f"{node.name!r} takes a part whose place is computed")
    axis, start, length = (int(each) for each in numbers if isinstance(each, int))
    values = {"starts": start, "ends": start + length, "axes": axis % len(shape)}
    return {key: np.asarray([value], np.int64) for key, value in values.items()}
