"""Candidates with their measured times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fxdecomp.allocation.candidates import Candidate, Question, selected
from fxdecomp.decompositions import method_named
from fxdecomp.decompositions.factorising import forms_of
from fxdecomp.latency.chain_times import ChainTimes
from fxdecomp.layers import LayerSpec
from fxdecomp.policy.budgets import Latency
from fxdecomp.progress import Progress


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
    """Time every candidate, and keep the frontier of error and time, the dense layer first.

    Args:
        questions: What was asked about each layer.
        menus: The candidates of each layer, the dense one first.
        times: Measures, or remembers.
        progress: Told of every candidate.
    """
    total, done = sum(map(len, menus.values())), 0
    priced: dict[str, tuple[Candidate, ...]] = {}
    for name, menu in menus.items():
        options = []
        for each in menu:
            taken = candidate_time_s(times, questions[name].specs, each.method, each.rank)
            options.append(replace(each, time_s=taken))
            done += 1
            progress("timing layers", done, total)
        priced[name] = selected(questions[name], options, Latency)
    return priced
