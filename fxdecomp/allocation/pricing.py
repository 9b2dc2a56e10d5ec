"""Candidates with their times.

Of each method at a layer the dearest candidate, the cheapest and one midway are timed. Where that one lies on
the line through the others, time over multiply-accumulates, those between are taken to lie there too; else
each half is looked at in the same way. What is assembled of them is timed as a whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from fxdecomp.allocation.candidates import Candidate, Question, selected
from fxdecomp.decompositions import method_named
from fxdecomp.decompositions.factorising import forms_of
from fxdecomp.latency.chain_times import ChainTimes
from fxdecomp.layers import LayerSpec
from fxdecomp.policy.budgets import Latency
from fxdecomp.progress import Progress

_STRAIGHT = 0.05
"""By what share of its time a candidate may lie off a line that stands for others."""


def candidate_time_s(
    times: ChainTimes, specs: Sequence[LayerSpec], method: str | None, rank: tuple[int, ...]
) -> float:
    """Time of a layer, dense or as a chain, over all its calls."""
    if method is None:
        return sum(times.time_s((spec,)) for spec in specs)
    forms = forms_of(method_named(method), rank, specs)
    return sum(times.time_s([stage.spec for stage in form.stages]) for form in forms)


def price(
    questions: Mapping[str, Question],
    menus: Mapping[str, Sequence[Candidate]],
    times: ChainTimes,
    progress: Progress,
) -> dict[str, tuple[Candidate, ...]]:
    """Find the time of every candidate, and keep the frontier of error and time, the dense layer first.

    Args:
        questions: What was asked about each layer.
        menus: The candidates of each layer, the dense one first, those of a method next to each other.
        times: Measures, or remembers.
        progress: Told of every candidate.
    """
    total, done = sum(map(len, menus.values())), 0
    priced: dict[str, tuple[Candidate, ...]] = {}
    for name, menu in menus.items():
        specs = questions[name].specs

        def taken(each: Candidate, specs: Sequence[LayerSpec] = specs) -> float:
            return candidate_time_s(times, specs, each.method, each.rank)

        options: list[Candidate] = []
        for _, group in itertools.groupby(menu, lambda each: each.method):
            options += with_times(list(group), taken)
            progress("timing layers", done + len(options), total)
        done += len(options)
        priced[name] = selected(questions[name], options, Latency)
    return priced


def with_times(menu: Sequence[Candidate], taken: Callable[[Candidate], float]) -> list[Candidate]:
    """One method's candidates with their times, measured or between measured ones.

    Args:
        menu: In the order of their multiply-accumulates, up or down.
        taken: Measures one.
    """
    known = {index: taken(menu[index]) for index in sorted({0, len(menu) - 1})}

    def on_line(index: int, ends: tuple[int, int]) -> float:
        first, last = ends
        span = menu[last].macs - menu[first].macs
        share = (menu[index].macs - menu[first].macs) / span if span else 0.5
        return known[first] + share * (known[last] - known[first])

    def fill(first: int, last: int) -> None:
        if last - first < 2:
            return
        centre = (menu[first].macs + menu[last].macs) / 2
        middle = min(range(first + 1, last), key=lambda index: abs(menu[index].macs - centre))
        guess, known[middle] = on_line(middle, (first, last)), taken(menu[middle])
        if abs(guess - known[middle]) > _STRAIGHT * known[middle]:
            fill(first, middle)
            fill(middle, last)
            return
        for ends in ((first, middle), (middle, last)):
            known.update({index: on_line(index, ends) for index in range(ends[0] + 1, ends[1])})

    fill(0, len(menu) - 1)
    return [replace(each, time_s=known[index]) for index, each in enumerate(menu)]
