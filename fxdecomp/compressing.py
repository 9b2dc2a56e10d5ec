"""`compress_to`: one network through the whole path into a folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from fxdecomp.calibration import Calibration
from fxdecomp.calibration.judging import judged_inputs
from fxdecomp.export import ExportReport, benchmark, to_onnx
from fxdecomp.export.examples import has_batch, with_batch
from fxdecomp.export.lowering import Precision, chosen_precision
from fxdecomp.export.sessions import CPU, check_available, onnxruntime
from fxdecomp.files import check_folder, write_json, write_text, write_with_torch
from fxdecomp.graphs.inputs import ExampleInputs, call_arguments
from fxdecomp.graphs.untouched import one_at_a_time
from fxdecomp.pipeline import transform
from fxdecomp.plans import Plan
from fxdecomp.policy import Policy
from fxdecomp.policy.rules import Rule
from fxdecomp.progress import Progress, silent
from fxdecomp.reporting import Report, Variant, graph_diff, report
from fxdecomp.searching import Metric, search
from fxdecomp.searching.judgements import Judge, Judgement
from fxdecomp.searching.trials import SearchResult
from fxdecomp.tracing import trace

_STEPS = 5

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A model, the inputs to trace it with, and what it was called by.

    Attributes:
        model: The model.
        example_inputs: Its example inputs.
        name: What it was called by.
        input_names: Names of its inputs where it came from a file that has names for them, else None.
        output_names: Likewise.
    """

    model: nn.Module | ExportedProgram
    example_inputs: ExampleInputs
    name: str = "a network"
    input_names: tuple[str, ...] | None = None
    output_names: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Goal:
    """What a search is to reach; the attributes are those of `fxdecomp.search`."""

    max_drop: float
    metric: Metric | None = None
    provider: str | None = None
    threads: int = 1
    evaluations: int = 6


@dataclass(frozen=True, slots=True)
class CompressResult:
    """What was written, and what became of each layer; `quantised` only where it was asked for."""

    report: Report
    exported: ExportReport
    search: SearchResult | None = None
    quantised: ExportReport | None = None
    judged: Mapping[str, Judgement] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON data."""
        timed = self.report.benchmark
        return {
            "report": self.report.to_dict(),
            "export": self.exported.to_dict(),
            "quantised": None if self.quantised is None else self.quantised.to_dict(),
            "timings": None if timed is None else timed.to_dict(),
            "search": None if self.search is None else self.search.to_dict(),
            "judged": {name: each.to_dict() for name, each in self.judged.items()},
        }


def written_by_compress(folder: Path, *, quantize: str | None, time: bool) -> list[Path]:
    """The files that `compress_to` writes, but for the state of a search."""
    names = ["small.onnx", "small.pt2", "report.html", "report.json", "policy.toml", "graph.diff"]
    names += [f"small.{quantize}.onnx"] if quantize else []
    names += ["dense.onnx"] if time else []
    return [folder / name for name in names]


def compress_to(
    loaded: LoadedModel,
    policy: Policy,
    folder: Path,
    *,
    calibration: Calibration | None = None,
    goal: Goal | None = None,
    metric: Metric | None = None,
    quantize: Precision | None = None,
    time: bool = False,
    provider: str = CPU,
    threads: int = 1,
    command: str = "",
    progress: Progress = silent,
) -> CompressResult:
    """Trace, transform, export and check a network, and write what a user needs into a folder.

    Args:
        loaded: The network and its example inputs.
        policy: Methods and ranks.
        folder: Made if it does not exist; `small.onnx`, `small.pt2`, `report.html`, `report.json`,
            `policy.toml` and `graph.diff` appear in it, each whole or not at all; `search.json` and
            `search.state.json` too where there is a goal. `small.onnx` and `small.pt2` take any batch
            where the network does. `policy.toml` makes the same network again.
        calibration: Unlabelled inputs, to which decompositions and quantisation are fitted; None for the
            weights alone.
        goal: Search for the fastest network that reaches it; None carries out the policy.
        metric: What every network is judged by, the original among them; with a goal, by the goal's own.
        quantize: Write `small.int8.onnx` or `small.fp16.onnx` too, see `to_onnx`.
        time: Write `dense.onnx` too, and time all files.
        provider: Where they are timed.
        threads: Threads of the timing; 0 for every core of this process.
        command: The command that asked for it, for the report.
        progress: Told of every finished step and layer.

    Raises:
        OutputError: The folder cannot be made.
        ExportError: onnxruntime, with which files are checked, is missing.
        BenchmarkError: Files are to be timed on a provider that is not there.
    """
    check_folder(folder)
    onnxruntime()
    if time:
        check_available(provider)
    gm = trace(loaded.model, loaded.example_inputs)
    precision = chosen_precision(quantize, calibrated=calibration is not None)
    progress("compress", 1, _STEPS)
    found = None
    if goal is None:
        small = transform(gm, policy, calibration=calibration, progress=progress)
    else:
        found = _searched(loaded, gm, policy, folder, calibration=calibration, goal=goal, progress=progress)
        small = found.model
    progress("compress", 2, _STEPS)
    folder.mkdir(parents=True, exist_ok=True)
    args, kwargs = call_arguments(loaded.example_inputs)
    fitted, inputs = judged_inputs(gm, calibration)
    exports = {"small": _export(loaded, small, folder / "small.onnx")}
    if precision is not None:
        name = f"small.{precision.kind}"
        exports[name] = _export(
            loaded, small, folder / f"{name}.onnx", quantize=precision, calibration=fitted
        )
    progress("compress", 3, _STEPS)
    times = None
    if time:
        exports["dense"] = _export(loaded, gm, folder / "dense.onnx")
        paths = {name: exports[name].path for name in sorted(exports)}
        times = benchmark(paths, providers=[provider], threads=threads, progress=progress)
    progress("compress", 4, _STEPS)
    program = _program(small, args, kwargs, free_batch=exports["small"].dynamic_batch)
    write_with_torch(folder / "small.pt2", partial(torch.export.save, program))
    progress("compress", _STEPS, _STEPS)
    plain = report(small)
    judge = Judge(gm, small, loaded.example_inputs, inputs, metric if goal is None else goal.metric)
    judged = judge.networks(found) | {
        name: judge.file(made.path, name.removeprefix("small."))
        for name, made in exports.items()
        if name.startswith("small.")
    }
    names = dict.fromkeys(["dense", *exports])
    told = report(
        small,
        before=gm,
        benchmark=times,
        variants=[_variant(name, plain, exports.get(name), judged.get(name)) for name in names],
        search=found,
        command=command,
    )
    lowered = next((made for name, made in exports.items() if name.startswith("small.")), None)
    result = CompressResult(told, exports["small"], found, lowered, judged)
    told.to_html(folder / "report.html", title=f"fxdecomp compress: {loaded.name}")
    kept = policy if found is None else _policy_of(plain.plan)
    write_text(folder / "policy.toml", kept.to_toml())
    write_text(folder / "graph.diff", graph_diff(gm, small) + "\n")
    write_json(folder / "report.json", result.to_dict())
    return result


def _searched(
    loaded: LoadedModel,
    gm: GraphModule,
    policy: Policy,
    folder: Path,
    *,
    calibration: Calibration | None,
    goal: Goal,
    progress: Progress,
) -> SearchResult:
    folder.mkdir(parents=True, exist_ok=True)  # the state of the search lies there
    found = search(
        gm,
        loaded.example_inputs,
        calibration=calibration,
        metric=goal.metric,
        max_drop=goal.max_drop,
        policy=policy,
        evaluations=goal.evaluations,
        provider=goal.provider,
        threads=goal.threads,
        state=folder / "search.state.json",
        progress=progress,
    )
    found.save(folder / "search.json")
    return found


def _policy_of(plan: Plan) -> Policy:
    """The policy that makes what a search found; one that leaves every layer alone where it found nothing."""
    return Policy.from_plan(plan) if plan.choices else Policy(rules=[Rule("*")])


def _export(
    loaded: LoadedModel,
    gm: GraphModule,
    path: Path,
    *,
    quantize: Precision | None = None,
    calibration: Calibration | None = None,
) -> ExportReport:
    """Write a network of the command line; a file that came in as ONNX keeps the names of its ends."""
    return to_onnx(
        gm,
        loaded.example_inputs,
        path,
        input_names=loaded.input_names,
        output_names=loaded.output_names,
        quantize=quantize,
        calibration=calibration,
    )


def _variant(name: str, told: Report, written: ExportReport | None, judged: Judgement | None) -> Variant:
    """A network's row in the summary, with how good it is."""
    return Variant(
        name,
        {} if judged is None else judged.cells,
        told.macs_before if name == "dense" else told.macs_after,
        told.params_before if name == "dense" else told.params_after,
        None if written is None else written.size_bytes,
    )


@one_at_a_time
@torch.no_grad()
def _program(
    gm: GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any], *, free_batch: bool
) -> ExportedProgram:
    """The network as a program that carries its example, for any batch where `torch.export` can free it."""
    leaves, structure = pytree.tree_flatten((args, kwargs))
    if free_batch and all(isinstance(leaf, Tensor) for leaf in leaves):
        batched = has_batch(leaves)
        batch = next(leaf.shape[0] for leaf, free in zip(leaves, batched, strict=True) if free)
        rows = with_batch(leaves, max(2, batch))  # torch.export takes a length of 1 for a constant
        shapes: Any = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
        for value, free in zip(rows, batched, strict=True):
            shapes[value] = {0: torch.export.Dim.AUTO} if free else {}
        values = pytree.tree_unflatten(rows, structure)
        try:
            program = torch.export.export(gm, *values, dynamic_shapes=shapes)
        except Exception as error:  # noqa: BLE001 - whatever the exporter raises, the batch can be fixed
            _log.info("small.pt2 takes the example's batch alone: %s", error)
        else:
            program.example_inputs = (args, kwargs)
            return program
    return torch.export.export(gm, args, kwargs)
