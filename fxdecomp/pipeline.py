"""`transform`: the passes, in reading order."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import replace

import torch
from torch.fx import GraphModule

from fxdecomp.allocation.joint_work import JointWork
from fxdecomp.allocation.joints import joints_of, worth_sharing
from fxdecomp.allocation.site_work import SiteWork
from fxdecomp.allocation.timed import missed
from fxdecomp.allocation.widths import found_widths
from fxdecomp.allocation.workers import Workers
from fxdecomp.calibration import Batch, Calibration
from fxdecomp.calibration.competing import JOINTS, REFITTED, WIDTHS, better, is_doubtful
from fxdecomp.calibration.judging import with_quality
from fxdecomp.errors import BudgetError, PolicyError
from fxdecomp.graphs.copies import copy_owning_tensors
from fxdecomp.graphs.inputs import require_graph
from fxdecomp.graphs.records import Record, attach_record, record_of
from fxdecomp.graphs.untouched import full_precision, one_at_a_time, unchanged_buffers
from fxdecomp.linalg.memory import give_back_graphs
from fxdecomp.outcomes import Skipped
from fxdecomp.passes import DecomposeLayers, JoinInputs, NarrowWidths, PartOutputs, RefitChains
from fxdecomp.policy import Policy
from fxdecomp.progress import Progress, silent
from fxdecomp.quality import LEAST_AGREEMENT
from fxdecomp.studies import Study

_Network = tuple[GraphModule, GraphModule]
"""What decomposing gave, and the same refitted and judged."""

_Option = tuple[Policy, tuple[str, str, str]]
"""A policy, and how a note tells its network from the others."""

_log = logging.getLogger(__name__)
_LITTLE = 0.05
"""Share of a network's multiply-accumulates for which no layer is taken that would stay without data."""


@one_at_a_time
@full_precision()
def transform(
    gm: GraphModule,
    policy: Policy,
    *,
    calibration: Calibration | Iterable[Batch] | Study | None = None,
    executor: Executor | None = None,
    least_agreement: float = LEAST_AGREEMENT,
    progress: Progress = silent,
) -> GraphModule:
    """Decompose the layers of a graph as a policy says.

    Args:
        gm: A traced network with recorded shapes, from `trace`; it is not changed.
        policy: Methods and ranks by layer.
        calibration: Unlabelled inputs, as an iterable of batches (tensors, tuples, dicts) or a `Calibration`
            with options. The decompositions are then fitted to the layers' outputs on seven eighths of them;
            where these are few or the result is poor, it competes with what the weights alone give on the
            rest, and the better is returned. Fewer than 4 inputs are not fitted to. Under a budget inputs are
            made up where there are none, and join fewer than 32 (see `Policy.made_up`). A `study` of `gm`
            keeps what was computed, for the next call.
        executor: Takes the numerical work at the layers: any `concurrent.futures.Executor`, such as a process
            pool or Dask's `client.get_executor()`. The result is the same, bit for bit: a small layer is
            worked on by one thread, a large one by as many as torch uses here, with an executor or without
            (`torch.set_num_threads(1)` before, for a worker a core).
        least_agreement: A result that agrees less with `gm` is warned of, in the log and in the report.
        progress: Told of every finished layer.

    Returns:
        A new GraphModule, which shares no tensor with `gm`; `report` tells what became of each layer, and in
        `quality` how far the outputs are from those of `gm`: on an eighth of the calibration, to which
        nothing is fitted, or on the example inputs of `trace`.

    Raises:
        CalibrationError: The calibration holds NaN or does not fit the network.
        PolicyError: The policy does not fit the network.
        FxdecompError: The graph has no recorded shapes, or is no GraphModule.

    Example:
        >>> import torch, fxdecomp
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(16, 32, 3, padding=1), torch.nn.ReLU())
        >>> gm = fxdecomp.trace(model, torch.randn(1, 16, 8, 8))
        >>> small = fxdecomp.transform(gm, fxdecomp.Policy(method="tucker2", rank=(8, 4)))
        >>> [node.target for node in small.graph.nodes if node.op == "call_module"]
        ['0.pointwise_in', '0.core', '0.pointwise_out', '1']
    """
    require_graph(gm, "transform")
    if not isinstance(policy, Policy):
        raise PolicyError(
            f"transform takes a Policy, got {type(policy).__name__}; use Policy(method='tucker2')"
        )
    known = calibration if isinstance(calibration, Study) else Study(gm, calibration)
    known.require(gm)
    workers = Workers(executor, progress)

    def finished(chains: GraphModule, data: Calibration | None) -> GraphModule:
        """Refitted to data, if there are any, its joint layers parted, and compared with the original."""
        joints = (record_of(chains) or Record()).joints
        if data is not None and data.refit:
            whole = SiteWork(JoinInputs(joints)(known.folded), data) if joints else work
            chains = RefitChains(whole.gm, data, progress, whole.output_sides)(chains)
        if joints:
            chains = PartOutputs(known.folded)(chains)
        with torch.inference_mode(False):
            return with_quality(copy_owning_tensors(chains, gm), gm, known.judged, least_agreement)

    work, problem = known.work_for(policy)
    data = work.calibration
    with unchanged_buffers(gm):
        others = _alternatives(policy, work, workers)
    policy = policy.with_widths({}).with_shares(())
    best: _Network | None = None
    refusals: list[BudgetError] = []
    for option, words in ((policy, WIDTHS), *others):
        start = _prepared(option, work, workers)
        try:
            chains = DecomposeLayers(option, start, workers)(start.gm)
        except BudgetError as error:
            refusals.append(error)
            continue
        if known is not calibration and not others:
            start.forget_layers()
        best = _preferred((chains, finished(chains, data)), best, words, policy)
    if best is None:
        raise refusals[0]
    chains, result = best
    _note(result, problem)
    is_timed = policy.budget is not None and policy.budget.is_timed
    if data is not None and not is_timed and is_doubtful(result, data, known.judged):
        if data.refit:
            result = better(result, finished(chains, None), REFITTED)
        del chains, best  # each may be as large as the network
        give_back_graphs(gm)
        with suppress(BudgetError):  # which the weights alone may not meet: heads then stay
            alone = _alone(policy, result, known.weights_alone, workers)
            if known is not calibration:
                known.weights_alone.forget_layers()
            result = better(result, finished(alone, None))
    _warn(result)
    return result


def _alternatives(policy: Policy, work: SiteWork, workers: Workers) -> list[_Option]:
    """What else a budget finds where widths or shared inputs are open to it, and how it is called."""
    open_ = found_widths(policy, work.gm, work, workers) if policy.has_open_widths else ()
    found = [(policy.with_shares(()).with_widths(widths), WIDTHS) for widths in open_]
    if policy.has_open_shares and (names := worth_sharing(policy, work, workers)):
        found.append((policy.with_widths({}).with_shares(names), JOINTS))
    return found


def _preferred(new: _Network, best: _Network | None, words: tuple[str, str, str], policy: Policy) -> _Network:
    """Of two networks the one that misses a budget of time less, or else the one that loses less."""
    if best is None:
        return new
    late, before = (missed((record_of(gm) or Record()).latency, policy.budget) for gm, _ in (new, best))
    if late != before:
        return new if late < before else best
    return new if better(new[1], best[1], words) is new[1] else best


def _warn(gm: GraphModule) -> None:
    """Log what a graph's record warns of."""
    quality = (record_of(gm) or Record()).quality
    if quality is not None and quality.warning:
        _log.warning("%s", quality.warning)


def _note(gm: GraphModule, note: str) -> None:
    """Add a sentence, where there is one, to a graph's record."""
    if note:
        record = record_of(gm) or Record()
        attach_record(gm, replace(record, notes=(*record.notes, note)))


def _prepared(policy: Policy, work: SiteWork, workers: Workers) -> SiteWork:
    """The work at the layers that are decomposed: of fewer channels, and joint, where the policy says so."""
    if policy.has_widths:
        narrower = NarrowWidths(policy, work.calibration, workers.progress)(work.gm)
        work = SiteWork(narrower, work.calibration, work.prior, work.gm)
    if policy.has_shares:
        with unchanged_buffers(work.gm):
            joints, notes = joints_of(policy, work, workers)
        if joints or notes:
            work = JointWork.after(JoinInputs(joints, notes)(work.gm), work)
    return work


def _alone(policy: Policy, fitted: GraphModule, work: SiteWork, workers: Workers) -> GraphModule:
    """What the weights alone give: for a budget, or else at the ranks of a network that was fitted.

    Layers that stay without data, such as heads, stay dense at these where they save less than `_LITTLE`.
    """
    start = _prepared(policy, work, workers)
    alone = DecomposeLayers(policy, start, workers)(start.gm)
    if policy.budget is not None:
        return alone
    parted = PartOutputs(work.gm)(alone)
    record, other = (record_of(gm) or Record() for gm in (fitted, parted))
    little = _LITTLE * sum(each.macs_before for each in record.outcomes)
    cheap = {each.site for each in record.outcomes if each.macs_before - each.macs_after < little}
    left = cheap & {each.site for each in other.outcomes if isinstance(each, Skipped)}
    assert record.plan is not None  # both were transformed
    assert other.plan is not None
    choices = tuple(replace(c, method=None, rank=()) if c.site in left else c for c in record.plan.choices)
    if choices == other.plan.choices:
        return alone
    replayed = Policy.from_plan(replace(record.plan, choices=choices))
    start = _prepared(replayed, work, workers)
    return DecomposeLayers(replayed, start, workers)(start.gm)
