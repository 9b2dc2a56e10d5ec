"""`search`: the fastest network whose quality falls by no more than the user allows.

The budget, of measured time where there is a provider and of multiply-accumulates where there is none, is
narrowed down between the dense network and a least share. The next share is where the line through the
losses at both ends of the bracket meets the loss that is allowed, kept off the ends: what was judged before
warms the start of what comes next. What is returned has been judged itself, never interpolated.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch.fx import GraphModule

from fxdecomp.allocation.floor import least_macs_share
from fxdecomp.calibration import Batch, Calibration
from fxdecomp.errors import BudgetError, PolicyError
from fxdecomp.files import check_file
from fxdecomp.graphs.inputs import ExampleInputs
from fxdecomp.graphs.records import attach_record, record_of
from fxdecomp.pipeline import transform
from fxdecomp.policy import Budget, Latency, MACs, Policy
from fxdecomp.progress import Progress, silent
from fxdecomp.reasons import Reason
from fxdecomp.recovery.checkpoints import name_of
from fxdecomp.reporting import report
from fxdecomp.searching.judging import Metric, default_metric
from fxdecomp.searching.outcome import left_for, timed, untouched
from fxdecomp.searching.standard import Standard
from fxdecomp.searching.trials import (
    SearchResult,
    Trial,
    fingerprint_of,
    next_share,
    own_state,
    restored_trials,
    save_state,
)
from fxdecomp.studies import Study

Recovery = Callable[[GraphModule], GraphModule]

_log = logging.getLogger(__name__)


def search(
    gm: GraphModule,
    example_inputs: ExampleInputs,
    *,
    calibration: Calibration | Iterable[Batch] | Study | None = None,
    metric: Metric | None = None,
    max_drop: float = 0.01,
    policy: Policy | None = None,
    evaluations: int = 6,
    least_share: float = 0.1,
    provider: str | None = None,
    threads: int = 1,
    provider_options: Mapping[str, str] | None = None,
    recovery: Recovery | None = None,
    state: str | Path | None = None,
    progress: Progress = silent,
) -> SearchResult:
    """Find the fastest network whose metric falls by no more than `max_drop`.

    Args:
        gm: A traced network, from `trace`; it is not changed.
        example_inputs: Inputs for export and timing; they are also judged on where there is no calibration.
        calibration: Unlabelled inputs. Without a `metric` the last quarter of the batches (one at least,
            where there are two) is kept for judging. A `study` of `gm` keeps what was computed.
        metric: The user's measure of a network, higher is better; it gets a copy in eval mode, with which it
            may do what it likes. It gives one number, or one score an input, whose mean counts. By default
            the agreement with the original's outputs, `1 - E||y - y'||^2 / E||y - mean(y)||^2`, which is 1
            for the original itself.
        max_drop: The most that the metric may fall below that of the original: on the inputs that it judges
            by, and where it gives one score an input, on others like them too, with 95 % confidence.
        policy: Methods, rules and exclusions, with a budget that is replaced; `auto` by default.
        evaluations: How many compressed networks are judged.
        least_share: The smallest share of the dense network's cost that is considered.
        provider: Where time is measured; the budget is then `Latency`, and the outcome is timed against the
            dense network once more. One that is not faster beyond the noise is dropped, and a note says so.
            None counts multiply-accumulates and times nothing.
        threads: Threads of the timing.
        provider_options: Options of the provider, as those of `Latency`.
        recovery: Trains every network before it is judged, such as
            `lambda small: fxdecomp.recover(small, gm, batches, steps=50)`.
        state: A file that every judged network is written to; a search of the same network, metric, data and
            settings goes on from it. One that differs writes a file beside it, named after its settings.
        progress: Told of every judged network, and of the work at each.

    Raises:
        PolicyError: A setting is out of range, the metric gives no number, or too few scores to accept any
            network, or there is nothing to judge by: neither metric nor calibration, and example inputs that
            are all the same number.
        CalibrationError: A batch does not fit the network.
        FxdecompError: The state file is damaged, or its folder is not there.

    Example:
        >>> import torch, fxdecomp
        >>> gm = fxdecomp.trace(torch.nn.Sequential(torch.nn.Linear(64, 32)), torch.randn(1, 64))
        >>> found = fxdecomp.search(gm, torch.randn(4, 64), max_drop=2.0, evaluations=1)
        >>> found.best.macs < found.trials[0].macs
        True
    """
    if not (0 <= max_drop < math.inf and 0 < least_share < 1 and evaluations >= 1):
        raise PolicyError(
            f"max_drop {max_drop}, least_share {least_share}, evaluations {evaluations}: wanted a number "
            "from 0 on, a share in (0, 1) and at least 1"
        )
    if state is not None:
        check_file(Path(state))
    base = policy or Policy(budget=MACs(0.5))
    if not isinstance(base.budget, MACs | Latency):
        raise PolicyError("search needs a policy with a budget that it can replace, such as MACs(0.5)")
    where = base.budget if isinstance(base.budget, Latency) else None
    where = where if provider is None else Latency(1.0, provider, threads, options=provider_options)
    known = calibration if isinstance(calibration, Study) else Study(gm, calibration)
    known.require(gm)
    data = known.calibration
    settings = {
        "max_drop": max_drop,
        "policy": replace(base, budget=_budget(0.5, where)).to_dict(),
        "metric": name_of(metric),
        "recovery": name_of(recovery),
        "fingerprint": fingerprint_of(gm, data, example_inputs),
    }
    judged_on: tuple[str, ...] = ()
    if metric is None:
        metric, data, judged_on = default_metric(gm, data, example_inputs)
        known = Study(gm, data)
    state = own_state(state, settings)
    trials = restored_trials(state, settings)
    judged = (metric, gm, max_drop, evaluations)
    standard = Standard.known(trials[0], *judged) if trials else Standard.of(*judged)
    trials = trials or [_first_trial(standard, gm, timed=where is not None)]
    seeker = _Seeker(gm, base, known, standard, recovery, progress)
    if where is None:
        seeker.floor = least_macs_share(gm, base)
    for step in range(len(trials) - 1, evaluations):
        least = max(least_share, seeker.floor)
        if least >= min(trial.share for trial in trials if trial.accepted):
            break  # nothing smaller than what is accepted already
        share = next_share(trials, least, max_drop)
        trials.append(seeker.judge(_budget(share, where)))
        save_state(state, settings, trials)
        progress("search", step + 1, evaluations)
    best = min((t for t in trials if t.accepted), key=lambda t: t.cost)
    name, model = str(settings["metric"]), seeker.model_of(best)
    notes = judged_on or (standard.note,)
    result = SearchResult(model, tuple(trials), best, max_drop, notes=notes, metric_name=name)
    if best is trials[0]:
        why = f"nothing worth changing: {_why_nothing(trials, seeker.floor)}"
        return replace(result, notes=(why, *judged_on))
    if where is None:
        return result
    measured = timed(result, gm, example_inputs, where, progress)
    return replace(measured, model=left_for(measured.model, base, Reason.NOT_FASTER))


def _first_trial(standard: Standard, gm: GraphModule, *, timed: bool) -> Trial:
    """The original, judged."""
    dense = report(gm)
    share = 1.0 if timed else None
    size = (dense.macs_before, dense.params_before)
    return Trial(1.0, *size, standard.value, True, time_share=share, least=standard.least)


def _why_nothing(trials: list[Trial], floor: float) -> str:
    if len(trials) == 1:
        return f"the smallest chains of all layers together take {floor:.1%} of the dense network"
    if all(trial.problem for trial in trials[1:]):
        return "no budget that was tried can be met"
    return "no smaller network that was judged keeps the metric"


@dataclass(slots=True)
class _Seeker:
    """Makes and judges networks; keeps the best that was accepted, and the least share that can be met."""

    gm: GraphModule
    policy: Policy
    known: Study
    standard: Standard
    recovery: Recovery | None
    progress: Progress
    floor: float = 0.0
    kept: tuple[Trial, GraphModule] | None = None

    def judge(self, budget: Budget) -> Trial:
        """The network of a budget, judged; without a network where the budget cannot be met."""
        share = float(budget.target)
        try:
            small = self._transformed(budget)
        except BudgetError as error:
            self.floor = max(self.floor, error.least_share or 0.0)
            return self._logged(Trial(share, 0, 0, math.nan, accepted=False, problem=str(error)))
        made = report(small)
        if not made.modified:
            why = "; ".join(made.record.notes[-1:])
            return self._logged(Trial(share, 0, 0, math.nan, accepted=False, problem=why))
        small = self._recovered(small)
        value, least = self.standard.judged(small)
        trial = Trial(
            share,
            made.macs_after,
            made.params_after,
            value,
            accepted=(value if least is None else least) >= self.standard.value - self.standard.max_drop,
            time_share=None if made.record.latency is None else made.record.latency.measured_share,
            record=record_of(small),
            least=least,
        )
        if trial.accepted and (self.kept is None or trial.cost < self.kept[0].cost):
            self.kept = (trial, small)
        return self._logged(trial)

    def model_of(self, trial: Trial) -> GraphModule:
        """The network of a trial, made again where it was judged before an interruption."""
        if self.kept is not None and self.kept[0] is trial:
            return self.kept[1]
        if trial.record is None or trial.plan is None:
            return left_for(untouched(self.gm), self.policy, Reason.NOT_KEPT)
        if trial.time_share is None:
            small = self._transformed(MACs(trial.share))
        else:  # measuring once more might choose otherwise
            policy = Policy.from_plan(trial.plan)
            small = transform(self.gm, policy, calibration=self.known, least_agreement=0.0)
        small = self._recovered(small)
        attach_record(small, trial.record)
        return small

    def _transformed(self, budget: Budget) -> GraphModule:
        return transform(
            self.gm,
            replace(self.policy, budget=budget),
            calibration=self.known,
            least_agreement=0.0,  # the user says how much may be lost, by `max_drop`
            progress=self.progress,
        )

    def _recovered(self, small: GraphModule) -> GraphModule:
        return small if self.recovery is None else self.recovery(small)

    @staticmethod
    def _logged(trial: Trial) -> Trial:
        judged = trial.problem or f"cost {trial.cost:.4g}, metric {trial.metric:.4f}"
        _log.info("share %.3f: %s", trial.share, judged)
        return trial


def _budget(share: float, where: Latency | None) -> Budget:
    return MACs(share) if where is None else replace(where, target=share, seconds=None)
