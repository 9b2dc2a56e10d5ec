"""What must hold of every network: each oracle raises `WrongError` where it does not.

The text of this module goes into the script of a failure, which needs torch, onnxruntime and fxdecomp only.
"""

from __future__ import annotations

import glob
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

import fxdecomp
from benchmarks.fuzz.measuring import (
    EXACT,
    SINGLE,
    TheirError,
    WrongError,
    alike,
    distance,
    expect,
    expect_same,
    given_names,
    macs,
    named,
    process_state,
    root_mean_square,
    run,
    state,
    tensors,
)
from fxdecomp.decompositions import method_for, method_named, refusal_of
from fxdecomp.importing import from_onnx
from fxdecomp.passes import FoldBatchNorm
from fxdecomp.sites import survey


@dataclass(frozen=True)
class Case:
    """A network to be tried.

    Attributes:
        network: Makes it, always the same.
        inputs: Makes inputs of so many rows from a seed.
        given: Makes what is traced of a network and inputs, such as a program of `torch.export`.
        method: Of the decomposition.
        counted: Whose products torch counts: those of the `layers`, `more` than those, or of `weights` too.
        computes: Whether it computes weights of others, which count as they are used.
        dtype: Of the weights and inputs.
    """

    network: Callable[[], nn.Module]
    inputs: Callable[[int, int], tuple[Any, ...]]
    given: Callable[[nn.Module, tuple[Any, ...]], Any]
    method: str
    counted: str
    computes: bool
    dtype: torch.dtype = torch.float64

    @cached_property
    def single(self) -> Case:
        """The same in float32."""
        return replace(self, dtype=torch.float32)

    def made(self) -> nn.Module:
        """The network anew."""
        return self.network().to(self.dtype)

    def drawn(self, rows: int, seed: int) -> tuple[Any, ...]:
        """Inputs of so many rows."""
        values = self.inputs(rows, seed)
        return tuple(value.to(self.dtype) if value.is_floating_point() else value for value in values)

    @cached_property
    def net(self) -> nn.Module:
        """The network that is traced."""
        return self.made()

    @cached_property
    def values(self) -> tuple[Any, ...]:
        """The example inputs."""
        return self.drawn(2, 1)

    @cached_property
    def gm(self) -> GraphModule:
        """The graph."""
        try:
            given = self.given(self.net, self.values)
            module = given.module() if isinstance(given, ExportedProgram) else given
            gap = 0.0 if module is self.net else distance(self.wanted, run(module, self.values))
        except Exception as error:
            raise TheirError(f"{type(error).__name__}: {str(error).partition(chr(10))[0][:100]}") from error
        if not gap <= (EXACT if self.dtype is torch.float64 else SINGLE):
            raise TheirError("the graph of torch's own tracer computes something else")
        return fxdecomp.trace(given, self.values)

    @cached_property
    def wanted(self) -> Any:
        """What the network itself gives for the example inputs."""
        return run(self.made().eval(), self.values)

    @cached_property
    def text(self) -> str:
        """The graph as it was before anything was done to it; ask for this first."""
        return str(self.gm.graph)

    @cached_property
    def small(self) -> GraphModule:
        """The graph at half its channels."""
        return fxdecomp.transform(self.gm, self.policy)

    @property
    def policy(self) -> fxdecomp.Policy:
        """Every layer at half its channels, heads too, whether it saves anything or not."""
        return fxdecomp.Policy(rules=[fxdecomp.Rule("*", self.method, 0.5)], require_saving=False)

    @property
    def full(self) -> fxdecomp.Policy:
        """Every layer at the ranks at which nothing is lost."""
        rules = []
        for site in survey(FoldBatchNorm()(self.gm)).sites:
            method = method_for(method_named(self.method), site.spec.per_group)
            if refusal_of(method, site.specs) is None:
                rank = method.rank_limits(site.spec.per_group)
                rules.append(fxdecomp.Rule(glob.escape(site.name), self.method, rank))
        return fxdecomp.Policy(rules=rules or [fxdecomp.Rule("*", None)], require_saving=False)


def full_rank(case: Case) -> None:
    """In float64 and at full rank the network is what it was."""
    expect(distance(case.wanted, run(case.gm, case.values)), EXACT, "the traced graph")
    small = fxdecomp.transform(case.gm, case.full)
    expect(distance(case.wanted, run(small, case.values)), EXACT, "full rank")


def counts(case: Case) -> None:
    """Multiply-accumulates are those that torch counts, parameters those of the modules."""
    before, after = fxdecomp.report(case.gm), fxdecomp.report(case.small)
    dense, small = macs(case.gm, case.values), macs(case.small, case.values)
    told = after.macs_before - after.macs_after
    if case.counted != "weights" and dense - small != told:
        raise WrongError(f"{told} multiply-accumulates are said to be saved, torch counts {dense - small}")
    if case.counted == "layers" and before.macs_before != dense:
        raise WrongError(f"the report tells {before.macs_before} multiply-accumulates, torch counts {dense}")
    for name, gm, of in (
        ("before", case.gm, before.params_before),
        ("before the transform", case.gm, after.params_before),
        ("after", case.small, after.params_after),
    ):
        buffers = sum(b.numel() for b in gm.buffers())
        own = sum(p.numel() for p in gm.parameters())
        if not (own <= of or case.computes) or of > own + buffers:
            raise WrongError(f"the report tells {of} parameters {name}, the modules have {own}")
    names = [outcome.site for outcome in after.outcomes]
    if len(set(names)) < len(names):
        raise WrongError(f"a layer is listed twice: {names}")


def again(case: Case) -> None:
    """A second transform and a replay of the plan change nothing, bit for bit."""
    twice = fxdecomp.transform(case.small, case.policy)
    expect_same(case.small, twice, "a second transform")
    plan = fxdecomp.report(case.small).plan
    replayed = fxdecomp.transform(case.gm, fxdecomp.Policy.from_plan(plan))
    expect_same(case.small, replayed, "a replay")


def untouched(case: Case) -> None:
    """Network, graph and inputs are what they were, whatever was done so far, and so is the process."""
    process, text = process_state(), case.text
    fxdecomp.report(case.small).to_dict()
    fxdecomp.graph_diff(case.gm, case.small)
    fresh = case.made()
    for name, was, now in (
        ("the network", state(fresh), state(case.net)),
        ("the inputs", named(case.drawn(2, 1)), named(case.values)),
    ):
        changed = [key for key in was.keys() | now.keys() if not alike(was.get(key), now.get(key))]
        if changed:
            raise WrongError(f"{name} changed: {sorted(changed)[:3]}")
    if text != str(case.gm.graph):
        raise WrongError("the graph's nodes changed")
    if any(part.training for part in case.gm.modules()):
        raise WrongError("the graph is in train mode")
    if process != process_state():
        raise WrongError("the state of the process changed")


def exported(case: Case) -> None:
    """The file computes what the graph computes at 1, 2 and 5 rows, where its batch is free; read, too."""
    import onnxruntime

    case = case.single
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "small.onnx")
        try:
            report = fxdecomp.export.to_onnx(case.small, case.values, path)
        except (fxdecomp.ExportError, fxdecomp.ParityError) as error:
            if plainly_exported(case, path):
                raise
            raise TheirError(str(error).splitlines()[0][:200]) from error
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for rows in (1, 2, 5) if report.dynamic_batch else (2,):
            values = case.drawn(rows, rows)
            fed = dict(zip(given_names(case.small), values, strict=True))
            feeds = {item.name: fed[item.name].numpy() for item in session.get_inputs()}
            got = [torch.from_numpy(each) for each in session.run(None, feeds)]
            gap = distance(tensors(run(case.small, values)), got)
            expect(gap, SINGLE, f"the file at {rows} rows")
        if not report.dynamic_batch and takes_rows(case):
            if not plainly_exported(case, path.with_name("plain.onnx"), free=True):
                raise TheirError("torch.onnx.export fixes the first axis to the example's")
            raise WrongError(f"the file's batch is fixed, the graph's is not: {report.notes}")
        imported = from_onnx(path)
        fed = dict(zip(given_names(case.small), case.values, strict=True))
        values = tuple(fed[name] for name in imported.input_names)
        gap = distance(tensors(run(case.small, case.values)), tensors(run(imported.gm, values)))
        expect(gap, SINGLE, "the import")


def calibrated(case: Case) -> None:
    """What is fitted to 64 inputs is not further from the network, on others, than the weights alone are.

    As far as so few inputs can tell: a least squares fit of a dozen numbers to the 56 that are fitted to has
    a fifth more error than the best one.
    """
    case = case.single
    if not is_of_rows(case):
        return
    held_out = case.drawn(200, 99)
    wanted = run(case.gm, held_out)
    fitted = fxdecomp.transform(case.gm, case.policy, calibration=[case.drawn(16, s) for s in range(4)])
    ours, plain = (root_mean_square(wanted, run(gm, held_out)) for gm in (fitted, case.small))
    if not ours**2 <= 1.25 * plain**2 + 0.01:
        raise WrongError(
            f"calibrated is off by {ours:.3g} on held-out inputs, from the weights alone {plain:.3g}"
        )


CHEAP: tuple[Callable[[Case], None], ...] = (full_rank, counts, again, untouched)
DEAR: tuple[Callable[[Case], None], ...] = (exported, calibrated)


def plainly_exported(case: Case, path: Path, *, free: bool = False) -> bool:
    """Whether torch.onnx.export and ONNX Runtime manage by themselves, with a free first axis if asked."""
    import onnxruntime

    axes = tuple({0: torch.export.Dim.DYNAMIC} for _ in case.values) if free else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(case.small, case.values, path, dynamo=True, verbose=False, dynamic_shapes=axes)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        if free and any(isinstance(item.shape[0], int) for item in session.get_inputs()):
            return False
        fed = zip(session.get_inputs(), case.values, strict=True)
        got = session.run(None, {item.name: value.numpy() for item, value in fed})
        return distance(tensors(run(case.small, case.values)), list(map(torch.from_numpy, got))) <= SINGLE
    except Exception:  # noqa: BLE001 - whatever it is, it is theirs
        return False


def is_of_rows(case: Case) -> bool:
    """Whether the graph takes any batch, and gives each row what it gives it in any other company."""
    values = case.drawn(6, 3)
    try:
        whole, part = run(case.gm, values), run(case.gm, tuple(value[2:5] for value in values))
        return distance([each[2:5] for each in tensors(whole)], tensors(part)) <= SINGLE
    except Exception:  # noqa: BLE001 - a graph of one batch size
        return False


def takes_rows(case: Case) -> bool:
    """Whether the graph runs at other numbers of rows."""
    try:
        for rows in (1, 3, 5):
            run(case.small, case.drawn(rows, rows))
    except Exception:  # noqa: BLE001 - a graph of one batch size
        return False
    return True
