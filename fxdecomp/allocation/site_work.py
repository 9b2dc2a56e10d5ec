"""Runs the numerical work of many layers, with their moments where there is calibration data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from torch.fx import GraphModule

from fxdecomp.allocation.candidates import Question
from fxdecomp.calibration import Calibration
from fxdecomp.calibration.collecting import collect
from fxdecomp.decompositions.factorising import Task
from fxdecomp.progress import Progress
from fxdecomp.sites import Site

Item = TypeVar("Item", Task, Question)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class WithThreads(Generic[Item, Result]):
    """A function as this process would run it: sums come out alike, bit for bit, on as many threads only."""

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


@dataclass(slots=True)
class SiteWork:
    """Where and on what the work is done.

    Attributes:
        gm: The graph, not yet changed.
        sites: Its layers.
        calibration: Inputs, None for the weights alone.
        executor: Takes the work; None does it here.
        progress: Told of every finished layer.
        runs: Forward passes over all calibration batches so far.
    """

    gm: GraphModule
    sites: Sequence[Site]
    calibration: Calibration | None
    executor: Executor | None
    progress: Progress
    runs: int = 0

    def each(
        self, work: str, function: Callable[[Item], Result], items: Mapping[str, Item]
    ) -> dict[str, Result]:
        """The result at every layer; moments are collected a group of layers at a time, and dropped."""
        results: dict[str, Result] = {}
        if self.calibration is None:
            self._run(work, function, items, results, len(items))
        elif items:
            sites = [site for site in self.sites if site.name in items]
            for moments in collect(self.gm, sites, self.calibration):
                self.runs += 1
                known = {name: replace(items[name], moments=each) for name, each in moments.items()}
                self._run(work, function, known, results, len(items))
        return {name: results[name] for name in items}

    def _run(
        self,
        work: str,
        function: Callable[[Item], Result],
        items: Mapping[str, Item],
        results: dict[str, Result],
        total: int,
    ) -> None:
        found = (
            map(function, items.values())
            if self.executor is None
            else self.executor.map(WithThreads(function, torch.get_num_threads()), items.values())
        )
        for name, result in zip(items, found, strict=True):
            results[name] = result
            self.progress(work, len(results), total)
