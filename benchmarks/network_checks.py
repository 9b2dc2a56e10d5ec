"""The checks that a sweep makes of one network: traced, at full rank, at half rank, exported.

Full rank is checked twice over: the chains are factorised in the network's own type, then both networks are
run in float64, so that the difference is that of the weights and not of the summation order. A network that
amplifies even the rounding of its float32 weights beyond `TOLERANCE` is factorised again in float64 and must
agree to `TOLERANCE_DOUBLE`. So is one that torch.export traced, whose graph asserts the type it was made in.
"""

from __future__ import annotations

import copy
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

import fxdecomp
from fxdecomp.reasons import NO_LAYER
from fxdecomp.sites.modules import Layer, is_layer

TOLERANCE, TOLERANCE_DOUBLE = 1e-4, 1e-8
"""Largest difference over largest output, of float32 factors and of float64 factors."""

FULL = fxdecomp.Policy(method="tucker2", rank=1.0, require_saving=False)
HALF = fxdecomp.Policy(rules=[fxdecomp.Rule("*", "tucker2", 0.5)])
"""Every layer at half its channels: a rule names the heads too, which are left alone otherwise."""
Inputs = tuple[Tensor, ...] | dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one network. `failed_at` is empty where everything held."""

    name: str
    family: str
    params: int = 0
    inputs: str = ""
    tracer: str = ""
    layers: int = 0
    applied: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    folded: int = 0
    unfolded: int = 0
    trace_error: float | None = None
    full_rank_error: float | None = None
    full_rank_type: str = ""
    half_macs: float | None = None
    half_params: float | None = None
    onnx: str = ""
    seconds: float = 0.0
    peak_bytes: int = 0
    failed_at: str = ""
    error: str = ""
    fingerprint: str = ""
    twin_of: str = ""


class CheckError(Exception):
    """A check that does not hold."""


def check_network(row: Row, model: nn.Module, inputs: Inputs, *, onnx: bool = False) -> Row:
    """Make every check of one network that its row does not hold yet, up to the first that fails."""
    start = time.perf_counter()
    model = model.eval()
    state = {"at": "run"}
    checks = [] if row.tracer else [("trace", _trace), ("half_rank", _half_rank), ("full_rank", _full_rank)]
    found = [replace(row, params=sum(p.numel() for p in model.parameters()), inputs=shapes(inputs))]
    try:
        for at, check in [*checks, *([("onnx", _onnx)] if onnx else [])]:
            state["at"] = at
            found.append(check(found[-1], model, inputs))
    except Exception as error:  # noqa: BLE001 - one network's failure is its row
        text = f"{type(error).__name__}: {error}".strip()
        found.append(replace(found[-1], failed_at=state["at"], error=text[:600]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = row.seconds + time.perf_counter() - start
    return replace(found[-1], seconds=round(seconds, 2), peak_bytes=max(peak, row.peak_bytes))


def _trace(row: Row, model: nn.Module, inputs: Inputs) -> Row:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    executed = executed_layers(model, inputs)
    gm = fxdecomp.trace(model, inputs)
    _expect_equal_state(before, model)
    report = fxdecomp.report(gm)
    error = difference(run(model, inputs), run(gm, inputs))
    layers = len(_layers(report))
    row = replace(row, tracer=report.record.traced_with, layers=layers, trace_error=float(f"{error:.3g}"))
    _expect_params(report.params_before, model, "traced")
    listed = Counter(outcome.site for outcome in report.outcomes)
    _expect(all(count == 1 for count in listed.values()), "a layer is listed twice")
    missing = sorted(name for names in executed if names.isdisjoint(listed) for name in list(names)[:1])
    _expect(not missing, f"{len(missing)} layers are missing from the report, such as {missing[:3]}")
    _expect(error <= 1e-5, f"the traced graph differs by {error:.2g}")
    return row


def _half_rank(row: Row, model: nn.Module, inputs: Inputs) -> Row:
    gm = fxdecomp.trace(model, inputs)
    dense = fxdecomp.report(gm)
    if not _layers(dense):
        return _nothing_to_do(row, gm)
    small = fxdecomp.transform(gm, HALF)
    report = fxdecomp.report(small)
    _expect_params(report.params_before, model, "dense")
    _expect_params(report.params_after, small, "half-rank")
    skipped = Counter(o.reason.name for o in report.skipped if o.reason not in NO_LAYER)
    row = replace(
        row,
        applied=len(report.applied),
        skipped=dict(skipped),
        folded=sum(fold.into is not None for fold in report.record.folds),
        unfolded=sum(fold.into is None for fold in report.record.folds),
    )
    _expect(
        _layers(report) == _layers(dense),
        f"the report lists {len(_layers(report))} layers, the dense graph has {len(_layers(dense))}",
    )
    outputs = [leaf for leaf in pytree.tree_leaves(run(small, inputs)) if isinstance(leaf, Tensor)]
    wanted = [leaf for leaf in pytree.tree_leaves(run(gm, inputs)) if isinstance(leaf, Tensor)]
    _expect([o.shape for o in outputs] == [w.shape for w in wanted], "the outputs have other shapes")
    counted, told = stage_macs(small, inputs, report), sum(o.macs_after for o in report.applied)
    _expect(counted == told, f"the report tells {told:,} MACs of the chains, the graph takes {counted:,}")
    if not report.applied:
        return row
    _expect(report.macs_after < report.macs_before, "the chains do not lower the MACs")
    return replace(
        row,
        half_macs=round(report.macs_after / report.macs_before, 4),
        half_params=round(report.params_after / report.params_before, 4),
    )


def _layers(report: fxdecomp.Report) -> Counter[str]:
    """The Conv and Linear layers of a report, by name."""
    return Counter(
        o.site for o in report.outcomes if isinstance(o, fxdecomp.Applied) or o.reason not in NO_LAYER
    )


def _expect_params(told: int, model: nn.Module, which: str) -> None:
    counted = sum(parameter.numel() for parameter in model.parameters())
    _expect(
        told == counted, f"the report tells {told:,} parameters of the {which} network, it has {counted:,}"
    )


def _nothing_to_do(row: Row, gm: GraphModule) -> Row:
    try:
        fxdecomp.transform(gm, HALF)
    except fxdecomp.PolicyError as error:
        return replace(row, skipped={"NO_LAYER": 1}, error=str(error))
    raise CheckError("a graph without a layer was transformed without a word")


def _full_rank(row: Row, model: nn.Module, inputs: Inputs) -> Row:
    if not row.layers:
        return row
    kind, tolerance, error = "float32", TOLERANCE, float("inf")
    wide, wide_inputs = copy.deepcopy(model).double(), as_double(inputs)
    if row.tracer == "symbolic_trace":
        full = fxdecomp.transform(fxdecomp.trace(model, inputs), FULL)
        error = difference(run(wide, wide_inputs), run(full.double(), wide_inputs))
    if not error <= TOLERANCE:
        kind, tolerance = "float64", TOLERANCE_DOUBLE
        full = fxdecomp.transform(fxdecomp.trace(wide, wide_inputs), FULL)
        error = difference(run(wide, wide_inputs), run(full, wide_inputs))
    row = replace(row, full_rank_error=float(f"{error:.3g}"), full_rank_type=kind)
    _expect(error <= tolerance, f"full rank differs by {error:.2g} in {kind}, tolerance {tolerance:g}")
    return row


def _onnx(row: Row, model: nn.Module, inputs: Inputs) -> Row:
    if isinstance(inputs, dict):
        return replace(row, onnx="not tried: keyword arguments")
    gm = fxdecomp.trace(model, inputs)
    with tempfile.TemporaryDirectory() as folder:
        try:
            fxdecomp.export.to_onnx(fxdecomp.transform(gm, HALF), inputs, Path(folder) / "small.onnx")
        except fxdecomp.ParityError:
            raise
        except Exception:
            try:
                fxdecomp.export.to_onnx(gm, inputs, Path(folder) / "dense.onnx")
            except Exception as error:  # noqa: BLE001 - the exporter's own limits
                return replace(row, onnx=f"not the original either: {str(error).splitlines()[0][:200]}")
            raise
    return replace(row, onnx="equal")


@torch.no_grad()
def run(model: nn.Module, inputs: Inputs) -> Any:
    """The network's outputs, the same chance each time."""
    torch.manual_seed(0)
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def difference(wanted: object, got: object) -> float:
    """Largest difference over the largest wanted value of the same output, the worst over all outputs."""
    pairs = zip(pytree.tree_leaves(wanted), pytree.tree_leaves(got), strict=False)
    worst = 0.0
    compared = 0
    for one, other in pairs:
        if not isinstance(one, Tensor) or not one.is_floating_point() or not one.numel():
            continue
        compared += 1
        scale = one.double().abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        gap = float((one.double() - other.double()).abs().max() / scale)
        worst = max(worst, gap if gap == gap else float("inf"))
    if not compared:
        raise CheckError("the network has no floating-point output to compare")
    return worst


def executed_layers(model: nn.Module, inputs: Inputs) -> list[set[str]]:
    """The names (a shared module has several) of every Conv and Linear that the network runs."""
    names: dict[nn.Module, set[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if is_layer(module):
            names.setdefault(module, set()).add(name)
    used: dict[nn.Module, None] = {}
    handles = [module.register_forward_hook(lambda m, i, o: used.setdefault(m)) for module in names]
    run(model, inputs)
    for handle in handles:
        handle.remove()
    return [names[module] for module in used]


def stage_macs(gm: GraphModule, inputs: Inputs, report: fxdecomp.Report) -> int:
    """Multiply-accumulates that the chains take, counted from what flows through their modules."""
    counts: list[int] = []
    stages = {stage for o in report.applied for stage in o.stage_names}
    handles = [
        module.register_forward_hook(_counter(counts))
        for name, module in gm.named_modules()
        if name in stages
    ]
    run(gm, inputs)
    for handle in handles:
        handle.remove()
    return sum(counts)


def _counter(counts: list[int]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, Layer)
        transposed = bool(getattr(module, "transposed", False))
        flowing = inputs[0] if transposed else output
        channels = module.weight.shape[0]
        counts.append(module.weight.numel() * flowing.numel() // channels)

    return count


def shapes(inputs: Inputs) -> str:
    """The shapes of the inputs in one line."""
    values = inputs.values() if isinstance(inputs, dict) else inputs
    return ", ".join("x".join(map(str, value.shape)) for value in values)


def as_double(inputs: Inputs) -> Inputs:
    """The inputs with their floating-point tensors in float64."""

    def wide(value: Tensor) -> Tensor:
        return value.double() if value.is_floating_point() else value

    if isinstance(inputs, dict):
        return {key: wide(value) for key, value in inputs.items()}
    return tuple(wide(value) for value in inputs)


def _expect_equal_state(before: dict[str, Tensor], model: nn.Module) -> None:
    after = model.state_dict()
    changed = [key for key, value in before.items() if not _same(value, after[key])]
    _expect(not changed, f"tracing changed {changed[:3]}")


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(torch.all((one == other) | (one.isnan() & other.isnan())))


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise CheckError(otherwise)


def to_json(row: Row) -> dict[str, Any]:
    """The row as JSON data."""
    return asdict(row)
