"""The candidates of one layer: methods and ranks on the efficient frontier of error and cost."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxdecomp.decompositions import (
    Decomposition,
    Problem,
    RankGrid,
    all_methods,
    method_for,
    method_named,
    problems_of,
    refusal_of,
)
from fxdecomp.decompositions.factorising import Task, forms_of
from fxdecomp.layers import LayerSpec
from fxdecomp.policy import Policy
from fxdecomp.policy.budgets import BUDGETS, Budget, MACs
from fxdecomp.policy.rules import AUTO
from fxdecomp.sites import Site


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to replace a layer.

    Attributes:
        method: Name of the decomposition, None for the layer as it is.
        rank: Its rank(s).
        error: Expected squared error relative to the layer's weight, or to its output under calibration.
        macs: Multiply-accumulates over all calls.
        params: Weights and biases.
        time_s: Seconds over all calls, measured or between measured ones; None where none were asked for.
    """

    method: str | None
    rank: tuple[int, ...]
    error: float
    macs: int
    params: int
    time_s: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """What candidates are wanted for; apart from any graph, so that it can be answered in another process.

    Attributes:
        site: Name of the layer.
        specs: The geometry at each call.
        weight: `[out_channels, in_channels // groups, *kernel]`.
        bias: Number of biases.
        method: Name of the one method to consider, or `auto`.
        multiple_of: What ranks are multiples of.
        cost: What the frontier is about; where it is timed, the methods' own frontiers of MACs, each
            on a coarse grid, whose times are still to be measured.
        require_saving: Whether a candidate must take fewer multiply-accumulates than the layer.
        floor: Least share of the layer's own cost that a candidate may have.
        problems: One per group, with moments for errors of the output; None to make them of the weight.
    """

    site: str
    specs: tuple[LayerSpec, ...]
    weight: Tensor
    bias: int
    method: str
    multiple_of: int
    cost: type[Budget] = MACs
    require_saving: bool = True
    floor: float = 0.0
    problems: tuple[Problem, ...] | None = None

    @property
    def key(self) -> Hashable:
        """Questions about one layer with equal keys have one answer."""
        return self.site, self.method, self.multiple_of, self.cost, self.require_saving, self.floor


def plain_key(key: Hashable) -> tuple[Any, ...]:
    """A question's key as plain data."""
    assert isinstance(key, tuple)
    return tuple(part.__name__ if isinstance(part, type) else part for part in key)


def key_of(plain: Sequence[Any]) -> Hashable:
    """The key that is plain data now."""
    site, method, multiple_of, cost, require_saving, floor = plain
    costs = {each.__name__: each for each in BUDGETS}
    return site, method, multiple_of, costs[cost], require_saving, floor


def task_of(site: Site, policy: Policy) -> Task | None:
    """What a policy wants done at a layer, without a rank where a budget is to find it; None for nothing."""
    selection = policy.select(site.name)
    if selection is None:
        return None
    return Task(
        site.name,
        site.specs,
        site.weight,
        site.bias,
        selection.method,
        selection.rank,
        floor=selection.floor,
        require_saving=policy.require_saving,
    )


def question_of(task: Task, multiple_of: int, cost: type[Budget]) -> Question:
    """What a budget asks of a layer whose rank is left to it."""
    return Question(
        task.site,
        task.specs,
        task.weight,
        0 if task.bias is None else task.bias.numel(),
        task.method,
        multiple_of,
        cost,
        require_saving=task.require_saving,
        floor=task.floor,
        problems=task.problems,
    )


@torch.no_grad()
def candidates(question: Question) -> tuple[Candidate, ...]:
    """The dense layer first, then cheaper and cheaper candidates with ever larger errors.

    Cost: that of the methods' estimates; the spectra of the weight are shared.
    """
    spec = question.specs[0]
    dense = Candidate(
        None,
        (),
        0.0,
        sum(each.macs for each in question.specs),
        spec.params + question.bias,
    )
    problems = question.problems or problems_of(question.weight, spec)
    is_fitted = problems[0].moments is not None
    biases = spec.bias_params if is_fitted else question.bias  # fitted chains have one
    is_timed = question.cost.is_timed
    grid = RankGrid.coarse(question.multiple_of) if is_timed else RankGrid(question.multiple_of)
    found: list[list[Candidate]] = []
    for method in methods_of(question.method, spec):
        most = method.most_weights if question.method == AUTO else None
        is_too_large = most is not None and question.weight.numel() > most
        if is_too_large or refusal_of(method, question.specs) is not None:
            continue
        gain = method.alternation_gain if is_fitted else 1.0
        of_method = []
        for rank, error in method.estimates(problems, grid).items():
            forms = forms_of(method, rank, question.specs)
            macs = sum(form.macs for form in forms)
            params = forms[0].params + biases
            of_method.append(Candidate(method.name, rank, max(error, 0.0) / gain, macs, params))
        found.append([each for each in of_method if not question.require_saving or each.macs < dense.macs])
    if is_timed:
        return (dense, *(each for of_method in found for each in frontier(of_method, MACs)))
    return selected(question, (dense, *itertools.chain.from_iterable(found)), question.cost)


def selected(question: Question, options: Sequence[Candidate], cost: type[Budget]) -> tuple[Candidate, ...]:
    """The dense layer, the first of the options, and the frontier of those between it and the floor."""
    dense, *others = options
    whole = cost.cost_of(dense)
    useful = [each for each in others if question.floor * whole <= cost.cost_of(each) < whole]
    return (dense, *frontier(useful, cost))


def methods_of(name: str, spec: LayerSpec) -> list[Decomposition]:
    """The methods that a name stands for at a layer: one, or with `auto` all, each once."""
    wanted = all_methods() if name == AUTO else (method_named(name),)
    return list({method.name: method for method in (method_for(m, spec.per_group) for m in wanted)}.values())


def frontier(found: Sequence[Candidate], cost: type[Budget]) -> list[Candidate]:
    """Those that no other beats in both error and cost, the dearest first."""
    kept: list[Candidate] = []
    for each in sorted(found, key=lambda c: (cost.cost_of(c), c.error)):
        if not kept or each.error < kept[-1].error:
            kept.append(each)
    return kept[::-1]
