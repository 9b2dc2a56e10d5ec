"""The numerical work at a network's layers, each thing done once however often it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Set
from dataclasses import astuple, dataclass, field, replace
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from fxdecomp.allocation.candidates import Candidate, Question, candidates, key_of, plain_key
from fxdecomp.allocation.sensitivity import EXAMPLES, LEAST_EXAMPLES, measure_sensitivity, some_of
from fxdecomp.allocation.workers import ALONE, Item, Result, Workers
from fxdecomp.calibration import Calibration
from fxdecomp.calibration.collecting import collect
from fxdecomp.calibration.moments import Moments
from fxdecomp.calibration.output_gradients import output_gradients
from fxdecomp.decompositions import Problem, problems_of
from fxdecomp.decompositions.factorising import Solution
from fxdecomp.fitting.output_side import OutputSide
from fxdecomp.linalg.memory import LARGE_BYTES, give_back_graphs, give_back_memory
from fxdecomp.progress import Progress
from fxdecomp.ranks import Fixed
from fxdecomp.sites import Site, survey

CHAINS = "decompose"
"""The work that gives layers' chains."""

_MENUS = "candidates"
_FEW_OUTPUTS = 1024
"""Outputs of a layer up to which the moments of their gradients are taken beside those that are wanted."""

_KEPT = 0.8
"""Share of the calibration's room for what is kept of the layers; the rest is for what is being made."""
_ROOM_BYTES = 2 << 30
"""Memory for what is kept of the weights' spectra where no calibration says how much there is."""


@dataclass(slots=True, eq=False)
class SiteWork:
    """What has been computed about the layers of one graph, fitted to one calibration.

    Attributes:
        gm: The graph; nobody changes it.
        calibration: Inputs, None for the weights alone.
        prior: Made-up inputs, towards which what few inputs show is shrunk; None for the identity.
        whole: The graph before widths were cut and inputs joined; None where that is this one.
        runs: Forward passes over all calibration batches so far.
    """

    gm: GraphModule
    calibration: Calibration | None
    prior: Calibration | None = None
    whole: GraphModule | None = None
    runs: int = 0
    _sites: dict[str, Site] = field(default_factory=dict, repr=False)
    _problems: dict[str, tuple[Problem, ...]] = field(default_factory=dict, repr=False)
    _answers: dict[tuple[str, Hashable], Any] = field(default_factory=dict, repr=False)
    _sensitivity: dict[tuple[str, int], float] = field(default_factory=dict, repr=False)
    _gradients: dict[str, Tensor | None] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._sites = {site.name: site for site in survey(self.gm).sites}

    @property
    def is_made_up(self) -> bool:
        """Whether the inputs that are fitted to are nobody's."""
        return self.calibration is not None and self.calibration.made_up

    @property
    def tells_sensitivity(self) -> bool:
        """Whether there is data enough to say what an error at a layer does to the outputs."""
        if self.calibration is None:
            return False
        return self.calibration.count >= LEAST_EXAMPLES

    @property
    def too_few(self) -> str:
        """That the inputs that were given are too few to say so, in words; empty where that is not so."""
        if self.calibration is None or self.is_made_up or self.tells_sensitivity:
            return ""
        count = self.calibration.count
        return f"the {count} inputs that are fitted to are too few, {LEAST_EXAMPLES} are enough"

    def sensitivity(
        self, names: Collection[str], progress: Progress, examples: int = EXAMPLES
    ) -> dict[str, float] | None:
        """Damage at the network's output per unit of error at some layers; None where nothing is known."""
        if self.calibration is None or not self.tells_sensitivity:
            return None
        new = [site for name, site in self._sites.items() if name in names]
        new = [site for site in new if (site.name, examples) not in self._sensitivity]
        if new:
            batches = some_of(self.calibration, examples)
            found = measure_sensitivity(self.gm, new, batches, progress=progress)
            self._sensitivity |= {(name, examples): value for name, value in found.items()}
        known = {name: self._sensitivity.get((name, examples)) for name in names}
        measured = {name: value for name, value in known.items() if value is not None}
        return measured if len(measured) == len(known) and measured else None

    def output_sides(self, names: Set[str], progress: Progress) -> dict[str, OutputSide]:
        """How the outputs of some layers are weighed, by name; of the others no gradient tells.

        Gradients cost as much at all layers as at one: those of few outputs are kept for the next policy.
        """
        if self.calibration is None:
            return {}
        if names - self._gradients.keys():
            new = [site for name, site in self._sites.items() if name not in self._gradients]
            new = [site for site in new if site.name in names or site.spec.out_channels <= _FEW_OUTPUTS]
            room = self.calibration.budget_bytes // 2  # as much as the values that are fitted to may take
            found = output_gradients(self.gm, new, self.calibration, room_bytes=room, progress=progress)
            self._gradients |= {site.name: found.get(site.name) for site in new}
        known = {name: self._gradients[name] for name in names}
        return {name: OutputSide.of(S) for name, S in known.items() if S is not None}

    def state(self) -> dict[str, Any]:
        """All that is known, as tensors and plain data; of the chains those of given ranks."""
        menus = [(key, found) for (work, key), found in self._answers.items() if work == _MENUS]
        return {
            "layers": {name: [each.state() for each in known] for name, known in self._problems.items()},
            "sensitivity": [(*key, value) for key, value in self._sensitivity.items()],
            "gradients": dict(self._gradients),
            "menus": [(plain_key(key), [astuple(each) for each in found]) for key, found in menus],
            "chains": list(self._given_chains()),
        }

    def _given_chains(self) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
        """The chains of given ranks, by what their tasks' keys are made of."""
        for (work, key), found in self._answers.items():
            if work == CHAINS and isinstance(found, Solution):
                assert isinstance(key, tuple)  # that of a task
                site, method, rank, require_saving = key
                if isinstance(rank, Fixed):
                    yield (site, method, rank.rank, require_saving), found.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` gave of the same graph and calibration."""
        for name, known in state["layers"].items():
            site = self._sites[name]
            given = zip(problems_of(site.weight, site.spec), known, strict=True)
            self._problems[name] = tuple(problem.with_state(each) for problem, each in given)
        self._sensitivity |= {(name, count): value for name, count, value in state["sensitivity"]}
        self._gradients |= state["gradients"]
        for key, found in state["menus"]:
            self._answers[_MENUS, key_of(key)] = tuple(Candidate(*each) for each in found)
        for (name, method, rank, require_saving), known in state["chains"]:
            solution = Solution.restored(self._sites[name].spec, known)
            self._answers[CHAINS, (name, method, Fixed(rank), require_saving)] = solution

    def menus(self, questions: Mapping[str, Question], workers: Workers) -> dict[str, tuple[Candidate, ...]]:
        """The candidates at every layer."""
        return self.each(_MENUS, candidates, questions, workers)

    def forget_layers(self) -> None:
        """Give back the memory of moments, bases and chains; sensitivities and gradients stay."""
        self._problems.clear()
        self._answers.clear()
        give_back_graphs(self.gm)

    @property
    def _room_bytes(self) -> int:
        """Memory that is left for moments and bases."""
        return int(_KEPT * self._budget_bytes) - sum(map(_size_bytes, self._problems.values()))

    @property
    def _budget_bytes(self) -> int:
        return _ROOM_BYTES if self.calibration is None else self.calibration.budget_bytes

    def is_fitted(self, site: Site) -> bool:
        """Whether a layer is fitted to the calibration: there is one, and its moments have room."""
        return self.calibration is not None and self.calibration.can_fit(site.spec)

    def each(
        self,
        work: str,
        function: Callable[[Item], Result],
        items: Mapping[str, Item],
        workers: Workers = ALONE,
    ) -> dict[str, Result]:
        """The result at every layer, by name.

        What a layer's decompositions share is kept where there is room; else it is made again.
        """
        keys = {name: (work, item.key) for name, item in items.items()}
        missing = {name: item for name, item in items.items() if keys[name] not in self._answers}
        efforts = {name: self._sites[name].spec.effort for name in items}
        done = sum(efforts[name] for name in items if name not in missing)
        room = (1 - _KEPT) * self._budget_bytes
        for problems in self._known(missing, workers.progress):
            known = {name: replace(missing[name], problems=each) for name, each in problems.items()}
            for name, result in workers.answers(function, known, room):
                self._answers[keys[name]] = result
                for problem in problems[name]:
                    problem.rest()
                done += efforts[name]
                workers.progress(work, done, sum(efforts.values()), name)
                if _size_bytes(problems[name]) >= LARGE_BYTES:
                    give_back_memory()
        return {name: self._answers[keys[name]] for name in items}

    def _known(self, names: Collection[str], progress: Progress) -> Iterator[dict[str, tuple[Problem, ...]]]:
        """The problems of layers, a group at a time; those of a group may be dropped after it."""
        kept = {name: self._problems[name] for name in names if name in self._problems}
        if kept:
            yield kept
        yield from self._begun([name for name in names if name not in kept], progress)

    def _begun(self, names: Collection[str], progress: Progress) -> Iterator[dict[str, tuple[Problem, ...]]]:
        """The problems of layers of which nothing is kept."""
        sites = [site for name, site in self._sites.items() if name in names]
        alone = {site.name: site for site in sites if not self.is_fitted(site)}
        if alone:
            yield {name: self._made(site, None) for name, site in alone.items()}
        fitted = [site for site in sites if site.name not in alone]
        if self.calibration is None or not fitted:
            return
        room = self._room_bytes
        data, prior = self.calibration, self.prior
        for moments in collect(self.gm, fitted, data, prior, room_bytes=room, progress=progress):
            self.runs += 1
            yield {name: self._made(self._sites[name], each) for name, each in moments.items()}

    def _made(self, site: Site, moments: tuple[Moments, ...] | None) -> tuple[Problem, ...]:
        """The problems of a layer; kept, where there is room."""
        problems = problems_of(site.weight, site.spec, moments)
        if _size_bytes(problems) <= self._room_bytes:
            self._problems[site.name] = problems
        return problems


def _size_bytes(problems: tuple[Problem, ...]) -> int:
    return sum(problem.size_bytes for problem in problems)
