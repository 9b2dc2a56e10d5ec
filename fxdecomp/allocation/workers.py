"""`Workers`: who does the work at layers, and on how many threads."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from fxdecomp.allocation.candidates import Question
from fxdecomp.calibration.batches import COPIES
from fxdecomp.decompositions.factorising import Task
from fxdecomp.progress import Progress, silent

Item = TypeVar("Item", Task, Question)
Result = TypeVar("Result")

_LEAST_WEIGHTS = 1 << 15
"""Weights of a layer from which on it gains something from being worked on beside another."""


@dataclass(frozen=True, slots=True)
class WithThreads(Generic[Item, Result]):
    """A function on a number of torch's threads: sums come out alike, bit for bit, on as many only."""

    function: Callable[[Item], Result]
    threads: int

    def __call__(self, item: Item) -> Result:
        """The function's result; a worker's own number of threads is put back."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            return self.function(item)
        finally:
            torch.set_num_threads(before)


@dataclass(frozen=True, slots=True)
class Workers:
    """Who does the work.

    Attributes:
        executor: Takes the work; None does it here.
        progress: Told of every finished layer.
    """

    executor: Executor | None = None
    progress: Progress = silent

    def answers(
        self, function: Callable[[Item], Result], items: Mapping[str, Item], room_bytes: float
    ) -> Iterator[tuple[str, Result]]:
        """What a function says of each item, by name.

        Layers whose products do not fill torch's threads are worked on side by side, on a thread each; those
        of small products are not, as Python lets one thread go on at a time.

        Args:
            function: What is to be done.
            items: The layers' tasks or questions.
            room_bytes: Memory for what is made on the way at all layers at one time.
        """
        threads = torch.get_num_threads()
        middling = _middling(items, room_bytes / threads) if threads > 1 else {}
        others = {name: item for name, item in items.items() if name not in middling}
        parts: list[Iterable[tuple[str, Result]]]
        if self.executor is not None:
            parts = [
                zip(some, self.executor.map(WithThreads(function, count), some.values()), strict=True)
                for some, count in ((middling, 1), (others, threads))
            ]
        else:
            beside = _side_by_side(function, middling, threads) if middling else ()
            parts = [beside, zip(others, map(function, others.values()), strict=True)]
        return itertools.chain.from_iterable(parts)


ALONE = Workers()
"""This process does the work, and tells nobody."""


def _middling(items: Mapping[str, Item], room_bytes: float) -> dict[str, Item]:
    """What gains from being worked on side by side, the longest first; nothing of a single one."""
    found = {
        name: item
        for name, item in items.items()
        if item.weight.numel() >= _LEAST_WEIGHTS and _made_bytes(item) <= room_bytes
    }
    if len(found) < 2:
        return {}
    return dict(sorted(found.items(), key=lambda each: -each[1].weight.numel()))


def _made_bytes(item: Task | Question) -> int:
    """Memory that the work at a layer takes at one time."""
    outputs, *rest = item.weight.shape
    return COPIES * 8 * max(outputs, math.prod(rest)) ** 2


def _side_by_side(
    function: Callable[[Item], Result], items: Mapping[str, Item], threads: int
) -> Iterator[tuple[str, Result]]:
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from zip(items, pool.map(function, items.values()), strict=True)
