"""Replace each selected Conv or Linear by a chain of smaller layers.

    before   x -> features.3 -> y
    after    x -> features.3.pointwise_in -> features.3.core -> features.3.pointwise_out -> y

Each layer is factorised once, however many call sites it has; the bias goes on the last stage, behind every
padding. A layer that an earlier run replaced is carried over as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

from torch.fx import GraphModule

from fxdecomp.allocation.candidates import candidates
from fxdecomp.allocation.planning import Situation, plan_budget
from fxdecomp.allocation.proportion import out_of_proportion
from fxdecomp.allocation.sensitivity import LEAST_EXAMPLES
from fxdecomp.allocation.site_work import SiteWork
from fxdecomp.allocation.unjudged import unjudged_layers
from fxdecomp.calibration import Calibration
from fxdecomp.calibration.splitting import inputs_of
from fxdecomp.decompositions import method_named
from fxdecomp.decompositions.factorising import Solution, Task, factorise, forms_of
from fxdecomp.errors import PolicyError
from fxdecomp.graphs.records import Record
from fxdecomp.graphs.replacing import Replacer, remove_unused
from fxdecomp.outcomes import Applied, Outcome, Reason, Refusal
from fxdecomp.passes.base import Pass
from fxdecomp.plans import Choice, Plan
from fxdecomp.policy import Policy
from fxdecomp.progress import Progress, silent
from fxdecomp.sites import Site, survey


@final
@dataclass(frozen=True, slots=True)
class DecomposeLayers(Pass):
    """Applies a policy; records an outcome for everything that holds weights.

    Attributes:
        policy: What to do with which layer.
        calibration: Inputs whose moments the decompositions are fitted to, None for the weights alone.
        executor: Takes the work at the sites; None does it here, one site after the other.
        progress: Told of every finished site.
    """

    name: ClassVar[str] = "decompose_layers"
    policy: Policy
    calibration: Calibration | None = None
    executor: Executor | None = None
    progress: Progress = silent

    def call(self, gm: GraphModule, record: Record) -> Record:
        """Replace every layer that the policy selects and whose chain pays.

        Raises:
            PolicyError: The policy does not fit this network.
        """
        earlier = {o.site: o for o in record.outcomes if isinstance(o, Applied)}
        stages = {stage: o.site for o in earlier.values() for stage in o.stage_names}
        found = survey(gm)
        sites = [site for site in found.sites if site.name not in stages]
        outcomes: dict[str, Outcome] = {
            **earlier,
            **{s.site: s for s in found.skipped if s.site not in stages},
        }
        if not sites and not outcomes:
            raise PolicyError("the graph has no Conv or Linear; there is nothing to decompose")
        outcomes |= {s.site: s for s in found.others if s.site not in outcomes}
        self.policy.check_names([*(site.name for site in sites), *outcomes, *_planned(record)])
        tasks = {site.name: task for site in sites if (task := _task(site, self.policy)) is not None}
        results: dict[str, Solution | Refusal] = {}
        judge = self.calibration if _tells_sensitivity(self.calibration) else None
        unnamed = [site for site in sites if site.name in tasks and self._may_stay(site.name)]
        if judge is None:
            results |= unjudged_layers(unnamed, found.heads, [*outcomes.values(), *sites])
        work = SiteWork(gm, sites, self.calibration, self.executor, self.progress)
        tasks = {name: task for name, task in tasks.items() if name not in results}
        open_ = {name: task for name, task in tasks.items() if task.rank is None}
        given = {name: task for name, task in tasks.items() if name not in open_}
        notes: tuple[str, ...] = ()
        latency = record.latency
        results |= work.each("decompose", factorise, given)
        if judge is not None:
            unasked = {site.name for site in unnamed}
            solved = {
                name: each for name, each in results.items() if name in unasked and isinstance(each, Solution)
            }
            several = [site for site in sites if site.name in solved]
            if len(several) > 1:
                results |= out_of_proportion(gm, several, solved, judge, self.progress)
        if open_ or (self.policy.budget is not None and sites):
            situation = Situation(
                gm,
                sites,
                results,
                list(outcomes.values()),
                record.dropped_params,
                lambda questions: work.each("candidates", candidates, questions),
                self.calibration,
                self.progress,
            )
            planned = plan_budget(self.policy, open_, situation)
            results |= {**planned.left, **work.each("decompose", factorise, planned.tasks)}
            notes, latency = planned.notes, planned.latency
        if self.calibration is not None:
            notes += (
                f"forward passes over the calibration batches for the activations' moments: {work.runs}",
            )
        replacer = Replacer(gm)
        for site in sites:
            result = results.get(site.name)
            if result is None:
                outcomes[site.name] = site.skipped(Reason.NOT_SELECTED)
            elif isinstance(result, Refusal):
                outcomes[site.name] = site.skipped(result.reason, result.detail)
            else:
                outcomes[site.name] = _apply(replacer, site, result)
        remove_unused(gm)
        ordered = tuple(outcomes[name] for name in _in_graph_order(outcomes, found.sites, stages))
        return replace(
            record,
            outcomes=ordered,
            policy=self.policy.to_dict(),
            plan=_plan(record, sites, results),
            notes=record.notes + notes,
            latency=latency,
        )

    def _may_stay(self, name: str) -> bool:
        """Whether no rule names a layer, so that it is decomposed only where that is worth it."""
        selection = self.policy.select(name)
        return self.policy.require_saving and selection is not None and not selection.is_named


def _planned(record: Record) -> list[str]:
    """The layers of earlier runs by the names that they had then, under which no chain may stand."""
    return [] if record.plan is None else [choice.site for choice in Plan.from_dict(record.plan).choices]


def _plan(record: Record, sites: list[Site], results: Mapping[str, Solution | Refusal]) -> dict[str, Any]:
    """What was done at every layer; of layers that an earlier run replaced, what that run wrote down."""
    rows = () if record.plan is None else Plan.from_dict(record.plan).choices
    choices = {row.site: row for row in rows}
    for site in sites:
        result = results.get(site.name)
        choice = Choice(site.name, str(site.spec))
        if isinstance(result, Solution):
            form = result.chain.form
            choice = replace(choice, method=form.method, rank=form.rank)
        choices[site.name] = choice
    return Plan(tuple(choices.values())).to_dict()


def _tells_sensitivity(calibration: Calibration | None) -> bool:
    """Whether there is data enough to say what an error at a layer does to the outputs."""
    return calibration is not None and sum(map(inputs_of, calibration.batches)) >= LEAST_EXAMPLES


def _task(site: Site, policy: Policy) -> Task | None:
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


def _apply(replacer: Replacer, site: Site, solution: Solution) -> Applied:
    chain, form = solution.chain, solution.chain.form
    forms = forms_of(method_named(form.method), form.rank, site.specs)
    name = replacer.replace(site, [replace(chain, form=each).stages for each in forms])
    return Applied(
        site=site.name,
        layer=str(site.spec),
        method=form.method,
        rank=form.rank,
        relative_error=solution.relative_error,
        params_before=site.params,
        params_after=chain.params,
        macs_before=site.macs,
        macs_after=sum(each.macs for each in forms),
        calls=len(site.calls),
        stages=form.names,
        output_error=solution.output_error,
        chain="" if name == site.name else name,
    )


def _in_graph_order(
    outcomes: dict[str, Outcome], sites: tuple[Site, ...], stages: Mapping[str, str]
) -> list[str]:
    """Sites in the order of the graph, earlier chains where their stages stand, then the other layers."""
    order: dict[str, None] = {}
    for site in sites:
        order[stages.get(site.name, site.name)] = None
    return [*order, *(name for name in outcomes if name not in order)]
