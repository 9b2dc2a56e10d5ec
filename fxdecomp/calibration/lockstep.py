"""Graphs that are run side by side on the same batches, each node as few times as memory allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch.fx import GraphModule

from fxdecomp.graphs.walking import Walk


class Lockstep:
    """Runs graphs over all batches, up to a place in each, and later on to the next.

    The values at the present place are kept for as many batches as fit the budget; the other batches are run
    from their beginning every time.
    """

    def __init__(
        self, graphs: Sequence[GraphModule], values: Sequence[Sequence[list[Any]]], budget_bytes: int
    ) -> None:
        """Start at the beginning.

        Args:
            graphs: In eval mode.
            values: For each graph, the values of its placeholders for each batch.
            budget_bytes: Memory for the values that are kept.
        """
        self._graphs = tuple(graphs)
        self._batches = list(zip(*values, strict=True))
        self._budget_bytes = budget_bytes
        self._kept: dict[int, tuple[Walk, ...]] = {}

    def walks(self, *first: str) -> Iterator[tuple[Walk, ...]]:
        """For each batch a walk through each graph, where it was left if that is known.

        Args:
            first: For each graph the first node that a walk has to stop before.
        """
        used_bytes = 0
        for index, values in enumerate(self._batches):
            walks = self._kept.pop(index, ())
            if not walks or not all(walk.has_still(name) for walk, name in zip(walks, first, strict=True)):
                walks = tuple(Walk(graph, each) for graph, each in zip(self._graphs, values, strict=True))
            yield walks
            size = sum(walk.live_bytes() for walk in walks)
            if used_bytes + size <= self._budget_bytes:
                used_bytes += size
                self._kept[index] = walks
