"""Replace each selected Conv or Linear by a chain of smaller layers.

    before   x -> features.3 -> y
    after    x -> features.3.pointwise_in -> features.3.core -> features.3.pointwise_out -> y

Each layer is factorised once, however many call sites it has; the bias goes on the last stage, behind every
padding. A layer that an earlier run replaced is carried over as it is.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

from torch.fx import GraphModule

from fxdecomp.allocation.candidates import task_of
from fxdecomp.allocation.planning import Situation, plan_budget
from fxdecomp.allocation.proportion import out_of_proportion
from fxdecomp.allocation.site_work import CHAINS, SiteWork
from fxdecomp.allocation.unjudged import unjudged_layers
from fxdecomp.allocation.workers import ALONE, Workers
from fxdecomp.decompositions.factorising import Solution, Task, factorise
from fxdecomp.errors import PolicyError
from fxdecomp.graphs.records import Record
from fxdecomp.graphs.replacing import Replacer, remove_unused
from fxdecomp.layers import Count
from fxdecomp.outcomes import Applied, Narrowed, Outcome
from fxdecomp.passes.base import Pass
from fxdecomp.plans import Choice, Plan
from fxdecomp.policy import Policy
from fxdecomp.reasons import Reason, Refusal
from fxdecomp.sites import Site, survey


@final
@dataclass(frozen=True, slots=True)
class DecomposeLayers(Pass):
    """Applies a policy; records an outcome for everything that holds weights.

    Attributes:
        policy: What to do with which layer.
        work: What has been computed about the graph's layers, None to begin anew with the weights alone.
        workers: Do what has still to be computed.
    """

    name: ClassVar[str] = "decompose_layers"
    policy: Policy
    work: SiteWork | None = None
    workers: Workers = ALONE

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
        joined = (name for joint in record.joints for name in joint.names)
        self.policy.check_names([*(site.name for site in sites), *outcomes, *_planned(record), *joined])
        work = self.work or SiteWork(gm, None)
        unnamed = [site for site in sites if self._may_stay(site.name)]
        results: dict[str, Solution | Refusal] = {}
        if not work.tells_sensitivity or work.is_made_up:
            everything = [*outcomes.values(), *(site.skipped(Reason.NOT_SELECTED) for site in sites)]
            results |= unjudged_layers(unnamed, found.heads, everything, work.too_few)
        tasks = self._tasks(sites, results, of_budget=False)
        results |= work.each(CHAINS, factorise, tasks, self.workers)
        if work.tells_sensitivity:
            in_question = [site for site in unnamed if isinstance(results.get(site.name), Solution)]
            results |= out_of_proportion(in_question, results, work, self.workers.progress)
        planned = None
        if self.policy.budget is not None and sites:
            others = list(outcomes.values())
            gone = _gone(record, found.sites)
            situation = Situation(gm, sites, results, others, gone, work, self.workers)
            planned = plan_budget(self.policy, self._tasks(sites, results, of_budget=True), situation)
            chains = work.each(CHAINS, factorise, planned.tasks, self.workers)
            results |= {**planned.left, **chains}
        notes = () if planned is None else planned.notes
        notes += _data_notes(work, [site for site in sites if site.name in results])
        replacer = Replacer(gm)
        for site in sites:
            outcomes[site.name] = _settled(replacer, site, results.get(site.name))
        remove_unused(gm)
        outcomes |= _with_kept_biases(gm, sites, outcomes)
        widths = {row.site: row for row in record.widths if row.site not in earlier}
        outcomes = {name: _as_it_was(each, widths.get(name)) for name, each in outcomes.items()}
        ordered = tuple(outcomes[name] for name in in_graph_order(outcomes, found.sites, stages))
        return replace(
            record,
            outcomes=ordered,
            policy=self.policy.to_dict(),
            plan=_plan(record, sites, results, made_up=work.is_made_up or work.prior is not None),
            notes=record.notes + notes,
            latency=record.latency if planned is None else planned.latency,
        )

    def _tasks(self, sites: list[Site], settled: Container[str], *, of_budget: bool) -> dict[str, Task]:
        """What is to be done at the layers whose rank a budget finds, or at those whose rank is given."""
        tasks = {site.name: task_of(site, self.policy) for site in sites if site.name not in settled}
        return {
            name: task
            for name, task in tasks.items()
            if task is not None and (task.rank is None) == of_budget
        }

    def _may_stay(self, name: str) -> bool:
        """Whether no rule names a layer, so that it is decomposed only where that is worth it."""
        selection = self.policy.select(name)
        return self.policy.require_saving and selection is not None and not selection.is_named


def _data_notes(work: SiteWork, sites: Sequence[Site]) -> tuple[str, ...]:
    """What people should know of the data that layers were fitted to."""
    if work.calibration is None:
        return ()
    notes: tuple[str, ...] = ()
    if large := [site.name for site in sites if not work.is_fitted(site)]:
        room = f"{work.calibration.budget_bytes / 2**30:.3g} GiB (budget_bytes)"
        notes += (f"moments of {', '.join(large)} do not fit {room}: their weights alone were used",)
    if work.is_made_up:
        count = work.calibration.count
        notes += (f"fitted to {count} made-up inputs; real ones are better (calibration=)",)
    if work.prior is not None:
        count = work.prior.count
        notes += (f"so few inputs were joined with {count} made-up ones; more real ones are better",)
    return notes


def _settled(replacer: Replacer, site: Site, result: Solution | Refusal | None) -> Outcome:
    """Do at a layer what was found for it."""
    if result is None:
        return site.skipped(Reason.NOT_SELECTED)
    if isinstance(result, Refusal):
        return site.skipped(result.reason, result.detail)
    return _apply(replacer, site, result)


def _as_it_was(outcome: Outcome, width: Narrowed | None) -> Outcome:
    return outcome if width is None else width.seen_in(outcome)


def _gone(record: Record, sites: Sequence[Site]) -> Count:
    """What the network took besides: folded BatchNorms, and widths that are no more."""
    now = {site.name: site for site in sites}
    rows = [(row, now[row.site]) for row in record.widths if row.is_changed and row.site in now]
    return Count(
        sum(row.macs_before - site.macs for row, site in rows),
        record.dropped_params + sum(row.params_before - site.params for row, site in rows),
    )


def _with_kept_biases(
    gm: GraphModule, sites: list[Site], outcomes: Mapping[str, Outcome]
) -> dict[str, Outcome]:
    """The replaced layers whose bias something else still uses: it is stored beside the chain's own."""
    stored = {id(parameter): parameter.numel() for parameter in gm.parameters()}
    found: dict[str, Outcome] = {}
    for site in sites:
        done = outcomes[site.name]
        kept = site.bias_roots & stored.keys()
        if isinstance(done, Applied) and site.bias is not None and kept:
            params = sum(stored.pop(root) for root in kept)
            if params == site.bias.numel():
                found[site.name] = replace(done, params_after=done.params_after + params)
    return found


def _planned(record: Record) -> list[str]:
    """The layers of earlier runs by the names that they had then, under which no chain may stand."""
    return [] if record.plan is None else [choice.site for choice in record.plan.choices]


def _plan(
    record: Record, sites: list[Site], results: Mapping[str, Solution | Refusal], *, made_up: bool
) -> Plan:
    """What was done at every layer; of layers that an earlier run replaced, what that run wrote down."""
    choices = {} if record.plan is None else {row.site: row for row in record.plan.choices}
    widths = {row.site: row for row in record.widths}
    for site in sites:
        result = results.get(site.name)
        width = widths.get(site.name)
        choice = Choice(site.name, str(site.spec) if width is None else width.layer)
        choice = choice if width is None else replace(choice, width=width.outputs)
        if isinstance(result, Solution):
            form = result.chain.form
            choice = replace(choice, method=form.method, rank=form.rank)
        choices[site.name] = choice
    return Plan(tuple(choices.values()), made_up)


def _apply(replacer: Replacer, site: Site, solution: Solution) -> Applied:
    chain, form = solution.chain, solution.chain.form
    forms = solution.forms_at(site.specs)
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


def in_graph_order(
    outcomes: Mapping[str, Outcome], sites: Sequence[Site], stages: Mapping[str, str]
) -> list[str]:
    """Sites in the order of the graph, earlier chains where their stages stand, then the other layers."""
    order: dict[str, None] = {}
    for site in sites:
        order[stages.get(site.name, site.name)] = None
    return [*order, *(name for name in outcomes if name not in order)]
