"""Two graphs that are run side by side on the same batches, each node as few times as memory allows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.fx import GraphModule, Node

from fxdecomp.graphs.walking import Walk


class Lockstep:
    """Runs two graphs over all batches, up to a place in each, and later on to the next.

    The values at the present place are kept for as many batches as fit the budget; the other batches are run
    from their beginning every time.
    """

    def __init__(
        self,
        left: GraphModule,
        right: GraphModule,
        values: list[tuple[list[Any], list[Any]]],
        budget_bytes: int,
    ) -> None:
        """Start at the beginning.

        Args:
            left: A graph in eval mode.
            right: Another one.
            values: For each batch, the values of both graphs' placeholders.
            budget_bytes: Memory for the values that are kept.
        """
        self._graphs = (left, right)
        self._values = values
        self._budget_bytes = budget_bytes
        self._kept: dict[int, tuple[Walk, Walk]] = {}

    def values_at(
        self, before: Node, source: Node, after: str, its_source: Node | None = None
    ) -> Iterator[tuple[Any, Any]]:
        """For each batch, an input of a node of the left graph and the result of one of the right graph.

        Args:
            before: The left graph is run up to this node.
            source: The node whose value is wanted at that time.
            after: The right graph's node whose result is wanted.
            its_source: An input of that node, which is wanted in the place of the result.
        """
        used_bytes = 0
        for index, (left_values, right_values) in enumerate(self._values):
            walks = self._kept.pop(index, None) or (
                Walk(self._graphs[0], left_values),
                Walk(self._graphs[1], right_values),
            )
            walks[0].go_before(before.name)
            taken = walks[0].value_of(source)
            if its_source is None:
                result = walks[1].go_past(after)
            else:
                walks[1].go_before(after)
                result = walks[1].value_of(its_source)
            yield taken, result
            size = sum(walk.live_bytes() for walk in walks)
            if used_bytes + size <= self._budget_bytes:
                used_bytes += size
                self._kept[index] = walks
