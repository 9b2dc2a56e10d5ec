"""From a budget of measured time to a method and a rank at every layer, checked on the assembled network.

    predicted = fixed + settled + sum over layers of the chosen candidate's time

`fixed` is what the profile of the dense network gives for everything else: activations, pooling, recurrent
layers, and the layers that are left alone. `settled` are the chains that the policy itself gives. Both the
budget and the prediction are shares of the dense network's time, in which settled layers count with their
dense time. Where channels were removed or inputs joined before, the dense network is the one before that: its
time is predicted from that of the one that is decomposed, by what both take, measured in turn. The choice is
assembled with drawn weights, exported, and timed against the dense network in turn. Where the measured share
misses the target, the limit moves by the miss and the choice is made again; a network that is not faster
beyond the noise is dropped.

Other work on the machine makes times that cannot be compared. The dense network is timed before and after its
layers, and rounds against it must agree; where they do not it is timed again, and `Measurement` tells what
remains.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.fx import GraphModule

from fxdecomp.allocation.allocate import Allocation, allocate
from fxdecomp.allocation.candidates import Candidate
from fxdecomp.allocation.measurement import Measurement, has_drifted
from fxdecomp.allocation.pricing import candidate_time_s
from fxdecomp.errors import BenchmarkError, BudgetError
from fxdecomp.export import BenchmarkReport, Ratio, benchmark
from fxdecomp.export.kernels import profile_model
from fxdecomp.export.parity import to_numpy
from fxdecomp.graphs.timed_plans import TimedAttempt, TimedPlan
from fxdecomp.latency.cache import LatencyCache, cache_folder
from fxdecomp.latency.chain_times import ChainTimes
from fxdecomp.latency.mock_networks import Picks, recorded_inputs, write_mock
from fxdecomp.latency.quickest_options import place_of
from fxdecomp.policy.budgets import Budget, Latency
from fxdecomp.sites import Site

ABOVE, BELOW = 0.02, 0.03
"""How far the measured share may lie above and below the target without another attempt."""

_ATTEMPTS = 3
_UNSURE = 0.2
"""How wide the interval of a speedup may be, as a share of it."""

_TIMING_S = 20.0
_ROUNDS = 12
_PROFILE_S = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class Attempt:
    """One choice, and what it was measured to take.

    Attributes:
        allocation: The choice.
        predicted: Its share of the dense network's time, as predicted.
        speedup: How many times faster than the dense network it was measured.
        dense_s: The dense network's time, measured in turn with it.
        small_s: Its time.
    """

    allocation: Allocation
    predicted: float
    speedup: Ratio
    dense_s: float
    small_s: float

    @property
    def share(self) -> float:
        """The measured share."""
        return 1 / self.speedup.value

    @property
    def is_unsure(self) -> bool:
        """Whether the rounds disagree."""
        return self.speedup.high - self.speedup.low > _UNSURE * self.speedup.value

    @property
    def remembered(self) -> TimedAttempt:
        """What was predicted and measured."""
        ratio = (self.speedup.value, self.speedup.low, self.speedup.high)
        return TimedAttempt(self.predicted, self.share, self.small_s, self.dense_s, ratio)


class LatencyPlanner:
    """Predicts, assembles and times. Use it as a context: the dense network's file lives in its folder."""

    def __init__(
        self,
        gm: GraphModule,
        sites: Sequence[Site],
        budget: Latency,
        given: Picks,
        whole: GraphModule | None = None,
    ) -> None:
        """Export, time and profile the dense network.

        Args:
            gm: The graph before any decomposition.
            sites: Its layers.
            budget: Provider, threads and target.
            given: Layers whose chain is settled; they are chains in every attempt.
            whole: The dense network, where the graph has fewer channels than it, or joint layers.
        """
        self._gm, self._sites, self._budget, self._given = gm, sites, budget, given
        self._whole = whole
        self._speedup = 1.0
        self._scratch = tempfile.TemporaryDirectory()
        self._folder = Path(self._scratch.name)
        self._drift = 1.0
        self._layers_share = 0.0

    def __enter__(self) -> LatencyPlanner:
        try:
            cache = LatencyCache(cache_folder())
            self._times = ChainTimes(place_of(self._budget, cache), cache)
            self._start = self._folder / "dense.onnx"
            write_mock(self._whole or self._gm, {}, self._start)
            self._dense_s = self._median_s()
            if self._whole is not None:
                self._start = self._folder / "start.onnx"
                write_mock(self._gm, {}, self._start)
                self._speedup = self._benchmark(_ROUNDS, start=self._start).ratio("dense", "start").value
        except BaseException:
            self._scratch.cleanup()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.cleanup()

    @property
    def times(self) -> ChainTimes:
        """The times of the layers."""
        return self._times

    def how(self, taken: Attempt | None) -> Measurement:
        """How the times were taken.

        Args:
            taken: The attempt that is taken.
        """
        unsure = None if taken is None or not taken.is_unsure else taken.speedup
        return Measurement(self._times, self._layers_share, self._drift, unsure)

    @property
    def target(self) -> float:
        """The share of the dense network's time that is wanted."""
        return self._budget.limit(self._dense_s) / self._dense_s

    def has_drifted(self) -> bool:
        """Time the dense network again: whether it takes another time than before; that of now counts."""
        before, self._dense_s = self._dense_s, self._median_s()
        self._drift = self._dense_s / before
        return has_drifted(self._drift)

    def fixed_s(self, open_: Mapping[str, float]) -> float:
        """Time of everything but the layers of a budget and the settled ones.

        Args:
            open_: The layers of the budget, with their dense times.
        """
        if not self._times.place.description.times_nodes:
            layers_s = self._settled_s(dense=True) + sum(open_.values())
            start_s = self._dense_s / self._speedup
            self._layers_share = layers_s / start_s
            return max(0.0, start_s - layers_s)
        names = [str(node.target) for node in self._gm.graph.nodes if node.op == "placeholder"]
        inputs = recorded_inputs(self._gm)
        profile = profile_model(
            self._start,
            dict(zip(names, map(to_numpy, inputs), strict=False)),
            provider=self._budget.provider,
            provider_options=self._times.place.options,
            threads=self._budget.threads,
            runs=max(3, min(20, round(_PROFILE_S / self._dense_s))),
        )
        ours = {*open_, *self._given}
        return sum(row.time_s for row in profile.kernels if row.name not in ours)

    def attempts(
        self,
        menus: Mapping[str, Sequence[Candidate]],
        fixed_s: float,
        sensitivity: Mapping[str, float] | None = None,
    ) -> list[Attempt]:
        """Choose, assemble and time until the target is met; empty where nothing is changed at all.

        Args:
            menus: The timed candidates of each layer, the dense one first.
            fixed_s: Time of everything but these and the settled layers.
            sensitivity: Damage per unit of error, by layer; None for all alike.

        Raises:
            BudgetError: The budget cannot be met.
        """
        start = fixed_s + self._settled_s(dense=True) + sum(menu[0].time_s or 0.0 for menu in menus.values())
        dense = self._speedup * start
        target = self.target
        limit = target * dense
        found: list[Attempt] = []
        for _ in range(_ATTEMPTS):
            try:
                choice = allocate(
                    menus,
                    self._budget,
                    fixed=fixed_s + self._settled_s(dense=False),
                    dense=dense,
                    limit=limit,
                    sensitivity=sensitivity,
                )
            except BudgetError:
                if not found:
                    raise
                break
            if any(choice.chosen == earlier.allocation.chosen for earlier in found):
                break
            picks = {name: (c.method, c.rank) for name, c in choice.chosen.items() if c.method is not None}
            if not picks and not self._given and self._whole is None:
                break
            found.append(self._timed(choice, choice.cost / dense, picks))
            share = found[-1].share
            if target - BELOW <= share <= target * (1 + ABOVE):
                break
            limit *= target / share
        return found

    def _settled_s(self, *, dense: bool) -> float:
        """Time of the settled layers, as they were or as their chains."""
        return sum(
            candidate_time_s(
                self._times,
                site.specs,
                *((None, ()) if dense else self._given[site.name]),
            )
            for site in self._sites
            if site.name in self._given
        )

    def _timed(self, choice: Allocation, predicted: float, picks: Picks) -> Attempt:
        small = self._folder / "small.onnx"
        write_mock(self._gm, {**self._given, **picks}, small)
        rounds = max(8, min(30, round(_TIMING_S / (4 * self._dense_s))))
        for times in (1, 2):
            report = self._benchmark(rounds * times, small=small)
            ratio, medians = report.ratio("dense", "small"), report.median_s
            attempt = Attempt(choice, predicted, ratio, medians["dense"], medians["small"])
            if not attempt.is_unsure:
                break
        return attempt

    def _median_s(self) -> float:
        report = self._benchmark(4)
        if report.problems:
            raise BenchmarkError(
                f"{self._budget.provider} cannot time this network: {report.problems[0].problem}"
            )
        return report.median_s["dense"]

    def _benchmark(self, rounds: int, **others: Path) -> BenchmarkReport:
        paths = {"dense": self._folder / "dense.onnx", **others}
        return benchmark(paths, **self._times.place.settings, rounds=rounds, profile=False)


def missed(timed: TimedPlan | None, budget: Budget | None) -> float:
    """By how much a network takes a larger share of the time than it may; infinite where it is not faster.

    Args:
        timed: What was measured of it, None without a budget of time.
        budget: That budget.
    """
    if timed is None or budget is None:
        return 0.0
    if timed.taken is None:
        return math.inf
    taken = timed.attempts[timed.taken]
    target = budget.limit(taken.dense_s) / taken.dense_s
    return max(0.0, taken.measured_share - target * (1 + ABOVE))


def best_attempt(attempts: Sequence[Attempt], target: float) -> Attempt | None:
    """The slowest attempt within the target, which does the least damage; else the fastest; None if none.

    Only those that are faster than the dense network beyond the noise count.
    """
    faster = [each for each in attempts if each.speedup.low > 1]
    within = [each for each in faster if each.share <= target * (1 + ABOVE)]
    if within:
        return max(within, key=lambda each: each.share)
    return min(faster, key=lambda each: each.share, default=None)
