"""Budgets that may reduce several layers at once against budgets of single chains, at equal measured time.

    python -m benchmarks.reductions fit --out DIR                 # hours; goes on where it was stopped
    python -m benchmarks.reductions fit --out DIR --recover       # each distilled besides
    python -m benchmarks.reductions times --out DIR               # minutes, on an idle machine

Each network is given a ladder of budgets of multiply-accumulates twice, once with chains of single layers
alone and once with all that `auto` may be allowed to do: widths, shared inputs, and chains in recurrent
layers. `fit` writes an ONNX file of each, and how far its outputs are from the dense network's on inputs that
nothing was fitted to. `times` times all files of a network in turn, on one thread of ONNX Runtime and batches
in which the layers take most of the time. Printed are each rung, and for the shares .5 and .35 of the dense
network's time what lies between the rungs on both sides. With --recover each rung is distilled on the
calibration inputs. `vit` needs the `transformers` package.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxdecomp
from benchmarks.reduced_networks import BATCH, CASES, Case
from fxdecomp import MACs, Policy, PolicyError, Rule
from fxdecomp.export import benchmark, to_onnx
from fxdecomp.files import read_json, write_json
from fxdecomp.plans import Plan

LADDER = (0.5, 0.38, 0.28, 0.2, 0.14)
SHARES = (0.5, 0.35)
DENSE = "dense"
KINDS = ("single chains", "all reductions")


@dataclass(frozen=True, slots=True)
class Rung:
    """One network, as `fit` leaves it beside its ONNX file.

    Attributes:
        network: The name of the case.
        kind: What it may be reduced by, `dense` for the original.
        share: Its budget.
        recovered: Whether it was distilled.
        error: `||y - y'|| / ||y - mean y||` on inputs that nothing was fitted to.
        score: What people would ask of it.
        macs: Its multiply-accumulates as a share of the dense network's.
        plan: Method and rank of every layer.
        notes: What the transformation said.
        refusal: Why there is no such network; empty where there is one.
    """

    network: str
    kind: str
    share: float = 1.0
    recovered: bool = False
    error: float = 0.0
    score: str = ""
    macs: float = 1.0
    plan: Mapping[str, Any] | None = None
    notes: Sequence[str] = ()
    refusal: str = ""

    @property
    def label(self) -> str:
        """Its name among those of its network."""
        return f"{self.kind}{f' {self.share}' if self.kind != DENSE else ''}{self.after}"

    @property
    def after(self) -> str:
        """What was done to it besides."""
        return ", recovered" if self.recovered else ""

    def path(self, out: Path, suffix: str) -> Path:
        """One of its files."""
        return out / f"{self.network}.{self.label.replace(',', '').replace(' ', '-')}{suffix}"


class Fitting:
    """Makes the rungs of one network that are not there yet."""

    def __init__(self, name: str, out: Path) -> None:
        self._name, self._out = name, out

    def rungs(self, ladder: Sequence[float], *, recover: bool) -> None:
        """Make those of some budgets, and the network itself."""
        if not Rung(self._name, DENSE).path(self._out, ".json").exists():
            self._write(Rung(self._name, DENSE, score=self._case.score(self._gm)), self._gm)
        for share in ladder:
            for kind in KINDS:
                self._rung(kind, share, recover=recover)

    def _rung(self, kind: str, share: float, *, recover: bool) -> None:
        wanted = Rung(self._name, kind, share, recover)
        if wanted.path(self._out, ".json").exists():
            return
        if not recover:
            policy = Policy(budget=MACs(share), rules=policies(self._gm)[kind])
            try:
                small = fxdecomp.transform(self._gm, policy, calibration=self._study)
            except PolicyError as error:
                self._write(Rung(self._name, kind, share, refusal=str(error)), None)
                return
        else:
            before = read(Rung(self._name, kind, share).path(self._out, ".json"))
            if before.refusal:
                return
            assert before.plan is not None  # what was not refused has one
            policy = Policy.from_plan(Plan.from_dict(before.plan))
            small = fxdecomp.transform(self._gm, policy, calibration=self._study)
            again = error_of(small, self._gm, self._case.unseen)
            if not np.isclose(again, before.error, rtol=1e-3):
                raise SystemExit(f"{wanted}: replayed with error {again}, was {before.error}")
            small = fxdecomp.recover(small, self._gm, self._case.batches)
        report = fxdecomp.report(small)
        found = Rung(
            *(self._name, kind, share, recover),
            error_of(small, self._gm, self._case.unseen),
            self._case.score(small),
            report.macs_after / report.macs_before,
            report.plan.to_dict(),
            report.record.notes,
        )
        self._write(found, small)

    def _write(self, rung: Rung, gm: GraphModule | None) -> None:
        if gm is not None:
            to_onnx(gm, self._case.example, rung.path(self._out, ".onnx"))
        write_json(rung.path(self._out, ".json"), asdict(rung))
        told = rung.refusal or f"error {rung.error:.2%}, {rung.score}, MACs {rung.macs:.3f}"
        print(f"{rung.network}, {rung.label}: {told}", flush=True)

    @cached_property
    def _case(self) -> Case:
        return CASES[self._name]()

    @cached_property
    def _gm(self) -> GraphModule:
        return fxdecomp.trace(self._case.network, self._case.example)

    @cached_property
    def _study(self) -> fxdecomp.Study:
        return fxdecomp.study(self._gm, self._case.batches)


def read(path: Path) -> Rung:
    """What `fit` wrote about a network."""
    return Rung(**read_json(path))


def policies(gm: GraphModule) -> dict[str, tuple[Rule, ...]]:
    """Rules under which layers are reduced one by one, and those that open all that there is."""
    recurrent = [name for name, module in gm.named_modules() if isinstance(module, nn.RNNBase)]
    single = tuple(Rule(name, method=None) for name in recurrent)
    return dict(zip(KINDS, (single, (Rule("*", width="auto", share="auto"),)), strict=True))


@torch.no_grad()
def error_of(small: GraphModule, gm: GraphModule, unseen: Tensor) -> float:
    """`||y - y'|| / ||y - mean y||` over some inputs."""
    found, wanted = small(unseen), gm(unseen)
    return float((found - wanted).norm() / (wanted - wanted.mean()).norm())


def at_share(rungs: Sequence[tuple[float, float]], share: float) -> float | None:
    """The error at a share of the dense network's time; None below all rungs.

    Between the best rungs around it the logarithm of the error is linear.

    Args:
        rungs: Share of the time and error of each network.
        share: The share that is asked for.
    """
    best: list[tuple[float, float]] = []
    for time, error in sorted(rungs):
        if not best or error < best[-1][1]:
            best.append((time, error))
    if not best or share < best[0][0]:
        return None
    times, errors = zip(*best, strict=True)
    return float(np.exp(np.interp(share, times, np.log(errors))))


def timed(name: str, out: Path, rounds: int) -> None:
    """Print the rungs of one network, and what lies at equal time."""
    rungs = [rung for path in sorted(out.glob(f"{name}.*.json")) if not (rung := read(path)).refusal]
    rungs.sort(key=lambda rung: (rung.kind != DENSE, rung.recovered, -rung.share, rung.kind != KINDS[0]))
    paths = {rung.label: rung.path(out, ".onnx") for rung in rungs}
    times = benchmark(paths, threads=1, batch_sizes=BATCH[name], rounds=rounds, profile=False)
    shares: dict[str, list[tuple[float, float]]] = {}
    for rung in rungs:
        ratio = times.ratio(DENSE, rung.label)
        shares.setdefault(f"{rung.kind}{rung.after}", []).append((1 / ratio.value, rung.error))
        taken = f"{times.median_s[DENSE] * 1e3:.2f} ms" if rung.kind == DENSE else str(ratio)
        row = f"| {name}, {rung.label} | {rung.macs:.2f} | {taken} | {rung.error:.1%} | {rung.score} |"
        print(row, flush=True)
    del shares[DENSE]
    for share in SHARES:
        for kind, known in shares.items():
            found = at_share(known, share)
            told = "not reached" if found is None else f"{found:.1%}"
            print(f"| {name}, {kind} | | at {share} of the time | {told} | |", flush=True)


def main() -> None:
    """Fit, or print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("fit", "times"))
    parser.add_argument("networks", nargs="*", help=f"some of {', '.join(CASES)}")
    parser.add_argument("--out", type=Path, required=True, help="where the files go, or are")
    parser.add_argument("--ladder", type=float, nargs="+", default=LADDER, help="budgets that are fitted")
    parser.add_argument("--recover", action="store_true", help="then distil them")
    parser.add_argument("--rounds", type=int, default=30, help="of timing")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    names = options.networks or [*CASES]
    if options.step == "times":
        head = "| network, budget | MACs | speedup | error of the outputs | score |"
        print(f"{head}\n|---|---|---|---|---|", flush=True)
        for name in names:
            if Rung(name, DENSE).path(options.out, ".json").exists():
                timed(name, options.out, options.rounds)
        return
    fittings = [Fitting(name, options.out) for name in names]
    for recover in (False, True) if options.recover else (False,):
        for fitting in fittings:
            fitting.rungs(options.ladder, recover=recover)


if __name__ == "__main__":
    main()
