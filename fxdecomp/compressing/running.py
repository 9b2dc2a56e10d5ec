"""`compress_to`: one network through the whole path into a folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch.fx import GraphModule

from fxdecomp.calibration import Calibration
from fxdecomp.calibration.judging import Judged, judged_inputs, with_quality
from fxdecomp.calibration.splitting import LEAST_INPUTS
from fxdecomp.compressing.folders import whole_folder
from fxdecomp.compressing.programs import program_of, save
from fxdecomp.compressing.results import CompressResult, FileOptions, Goal, LoadedModel
from fxdecomp.compressing.variants import is_allowed, variant_of
from fxdecomp.errors import CalibrationError, RecoveryError
from fxdecomp.export import ExportReport, Int8, benchmark, to_onnx
from fxdecomp.export.lowering import chosen_precision
from fxdecomp.export.sessions import CPU, check_available, onnxruntime, thread_count
from fxdecomp.files import check_folder, read_json, write_json, write_text, write_with_torch
from fxdecomp.graphs.inputs import call_arguments
from fxdecomp.latency.quickest_options import timed_at
from fxdecomp.pipeline import transform
from fxdecomp.plans import Plan
from fxdecomp.policy import Latency, Policy
from fxdecomp.policy.rules import Rule
from fxdecomp.progress import Progress, silent
from fxdecomp.quality import LEAST_AGREEMENT
from fxdecomp.recovery import recover
from fxdecomp.reporting import graph_diff, report
from fxdecomp.reporting.error_path import error_along
from fxdecomp.reporting.evidence import lowered_of
from fxdecomp.searching import Metric, search
from fxdecomp.searching.judgements import Judge
from fxdecomp.searching.trials import SearchResult
from fxdecomp.sites.opaque import Opaque
from fxdecomp.tracing import trace

_STEPS = 5
_STATE = "search.state.json"
_OURS = re.compile(
    r"(small(\.\w+)?|dense)\.onnx(\.data)?|small\.pt2|report\.(html|json)|policy\.toml|run\.toml|graph\.diff"
    r"|search(\.state)?\.json"
)
"""The names that a run may give; what else lies in its folder is the user's."""


def run_files(folder: Path, *, quantize: str | None, time: bool) -> list[Path]:
    """The files that a run writes into a folder, and those of an earlier run that go."""
    names = ["small.onnx", "small.pt2", "report.html", "report.json", "policy.toml", "graph.diff", "run.toml"]
    names += [f"small.{quantize}.onnx"] if quantize else []
    names += ["dense.onnx"] if time else []
    return [folder / name for name in dict.fromkeys([*names, *_files_of_earlier_run(folder)])]


def compress_to(
    loaded: LoadedModel,
    policy: Policy,
    folder: Path,
    *,
    calibration: Calibration | None = None,
    goal: Goal | None = None,
    metric: Metric | None = None,
    recovery_steps: int = 0,
    files: FileOptions = FileOptions(),  # noqa: B008 - immutable
    time: bool = False,
    provider: str = CPU,
    threads: int = 1,
    provider_options: Mapping[str, str] | None = None,
    command: str = "",
    settings: str = "",
    progress: Progress = silent,
) -> CompressResult:
    """Trace, transform, export and check a network, and write what a user needs into a folder.

    Args:
        loaded: The network and its example inputs.
        policy: Methods and ranks.
        folder: Made if it does not exist. `small.onnx`, `small.pt2`, `report.html`, `report.json`,
            `policy.toml` and `graph.diff` appear in it together, in the place of those of an earlier run, or
            nothing changes; with a goal `search.json` too, and `search.state.json` as the search goes.
            `small.onnx` and `small.pt2` take any batch where the network does. `policy.toml` makes the same
            network again.
        calibration: Unlabelled inputs, to which decompositions and quantisation are fitted; None for the
            weights alone.
        goal: Search for the fastest network that reaches it; None carries out the policy.
        metric: What every network is judged by, the original among them; with a goal, by the goal's own.
        recovery_steps: Steps of `recover`, which trains the result towards the original; 0 for none.
        files: How they are written; with `quantize`, `small.int8.onnx` or `small.fp16.onnx` too.
        time: Write `dense.onnx` too, and time all files.
        provider: Where they are timed.
        threads: Threads of the timing; 0 for every core of this process.
        provider_options: Options of the provider; by default those of the policy's budget of time.
        command: The command that asked for it, for the report.
        settings: The text of `run.toml`; empty for no such file.
        progress: Told of every finished step and layer.

    Raises:
        OutputError: The folder cannot be made.
        WriteError: A file cannot be written; the folder is as it was.
        ExportError: onnxruntime, with which files are checked, is missing.
        BenchmarkError: Files are to be timed on a provider that is not there or does not take its
            options, or with threads that cannot be.
        CalibrationError: There are too few inputs to recover or quantise by.
        RecoveryError: There is nothing to recover with.
    """
    check_folder(folder)
    onnxruntime()
    thread_count(threads)
    if time or provider_options:
        check_available(provider, provider_options)
    if recovery_steps and calibration is None:
        raise RecoveryError("recovery trains on calibration inputs; give some")
    gm = trace(loaded.model, loaded.example_inputs)
    precision = chosen_precision(files.quantize, calibrated=calibration is not None)
    enough = recovery_steps > 0 or isinstance(precision, Int8)
    fitted, unseen = _inputs(gm, calibration, enough=enough)
    progress("compress", 1, _STEPS)
    run = _Run(loaded, gm, folder, calibration, fitted, unseen, recovery_steps, progress)
    found = None if goal is None else run.searched(policy, goal)
    small = run.transformed(policy) if found is None else found.model
    progress("compress", 2, _STEPS)
    with whole_folder(folder, _files_of_earlier_run(folder, kept=() if goal is None else (_STATE,))) as draft:
        plain = replace(files, quantize=None)
        exports = {"small": _export(loaded, small, draft / "small.onnx", plain)}
        if precision is not None:
            name = f"small.{precision.kind}"
            exports[name] = _export(loaded, small, draft / f"{name}.onnx", files, fitted)
        progress("compress", 3, _STEPS)
        times = None
        if time:
            exports["dense"] = _export(loaded, gm, draft / "dense.onnx", plain)
            paths = {name: exports[name].path for name in sorted(exports)}
            where = Latency(1.0, provider, threads, options=provider_options or _options_of(policy, provider))
            times = benchmark(paths, **timed_at(where), progress=progress)
        progress("compress", 4, _STEPS)
        args, kwargs = call_arguments(loaded.example_inputs)
        opaque = [module.contents for module in small.modules() if isinstance(module, Opaque)]
        if opaque:
            note = f"there is no small.pt2: PyTorch cannot export {'; '.join(opaque)} of small.onnx"
            exports["small"] = replace(exports["small"], notes=(*exports["small"].notes, note))
        else:
            program = program_of(small, args, kwargs, free_batch=exports["small"].dynamic_batch)
            write_with_torch(draft / "small.pt2", partial(save, program))
        progress("compress", _STEPS, _STEPS)
        judge = Judge(gm, small, loaded.example_inputs, unseen, metric if goal is None else goal.metric)
        lowered = {name: made for name, made in exports.items() if name.startswith("small.")}
        judged = judge.networks(found) | {
            name: judge.file(made.path, name.removeprefix("small.")) for name, made in lowered.items()
        }
        known = report(small)
        account = report(
            small,
            before=gm,
            benchmark=times,
            variants=[
                replace(
                    variant_of(name, known, exports.get(name), judged.get(name)),
                    allowed=is_allowed(judged.get(name), judged.get("dense"), goal),
                )
                for name in dict.fromkeys(["dense", *exports])
            ],
            search=found,
            command=command,
        )
        account = replace(
            account,
            lowered={name: lowered_of(made.path, made.quantization) for name, made in lowered.items()},
            errors=() if unseen is None else error_along(gm, small, account.outcomes, unseen.batches[0]),
        )
        result = CompressResult(account, exports["small"], found, next(iter(lowered.values()), None), judged)
        texts = {
            "policy.toml": (policy if found is None else _policy_of(known.plan)).to_toml(),
            "graph.diff": graph_diff(gm, small) + "\n",
            **({"run.toml": settings} if settings else {}),
        }
        return _written(result.moved_to(folder), draft, loaded.name, texts)


def _options_of(policy: Policy, provider: str) -> Mapping[str, str] | None:
    """The options with which a policy's budget of time is measured on a provider."""
    budget = policy.budget
    return budget.options if isinstance(budget, Latency) and budget.provider == provider else None


def _inputs(
    gm: GraphModule, given: Calibration | None, *, enough: bool
) -> tuple[Calibration | None, Judged | None]:
    """Inputs to fit to, and inputs to judge on; `enough` of them where more than decompositions is fitted.

    Raises:
        CalibrationError: There are too few.
    """
    fitted, unseen = judged_inputs(gm, given)
    if enough and given is not None and fitted is None:
        raise CalibrationError(
            f"{given.count} calibration input(s) are too few to train or quantise by: nothing would be left "
            f"to judge on; give {LEAST_INPUTS} or more"
        )
    return fitted, unseen


def _written(result: CompressResult, draft: Path, name: str, texts: Mapping[str, str]) -> CompressResult:
    """Write what is to be read, `report.json` last: it lists the files."""
    result.report.to_html(draft / "report.html", title=f"fxdecomp compress: {name}")
    for file, text in texts.items():
        write_text(draft / file, text)
    if result.search is not None:
        result.search.save(draft / "search.json")
    names = {entry.name for entry in draft.iterdir()} | {"report.json"}
    names |= set() if result.search is None else {_STATE}
    result = replace(result, files=tuple(sorted(names)))
    write_json(draft / "report.json", result.to_dict())
    return result


def _files_of_earlier_run(folder: Path, kept: tuple[str, ...] = ()) -> list[str]:
    """The names of the files that the last run left in a folder, as its report lists them."""
    try:
        names = read_json(folder / "report.json")["files"]
        return [name for name in names if _OURS.fullmatch(name) and name not in kept]
    except (OSError, ValueError, KeyError, TypeError):
        return []


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """What a network is made smaller with."""

    loaded: LoadedModel
    gm: GraphModule
    folder: Path
    calibration: Calibration | None
    fitted: Calibration | None
    unseen: Judged | None
    recovery_steps: int
    progress: Progress

    def transformed(self, policy: Policy) -> GraphModule:
        """The network that a policy makes, trained towards the original where that is wanted."""
        small = transform(self.gm, policy, calibration=self.calibration, progress=self.progress)
        if not self.recovery_steps:
            return small
        return with_quality(self.recovered(small), self.gm, self.unseen, LEAST_AGREEMENT)

    def recovered(self, small: GraphModule) -> GraphModule:
        """A network trained towards the original, on inputs that nothing is judged on."""
        assert self.fitted is not None  # refused before the work without enough calibration
        data = list(self.fitted.batches)
        return recover(small, self.gm, data, steps=self.recovery_steps, progress=self.progress)

    def searched(self, policy: Policy, goal: Goal) -> SearchResult:
        """What a search finds; its state lies in the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return search(
            self.gm,
            self.loaded.example_inputs,
            calibration=self.calibration,
            metric=goal.metric,
            max_drop=goal.max_drop,
            policy=policy,
            evaluations=goal.evaluations,
            provider=goal.provider,
            threads=goal.threads,
            provider_options=goal.provider_options,
            recovery=self.recovered if self.recovery_steps else None,
            state=self.folder / _STATE,
            progress=self.progress,
        )


def _policy_of(plan: Plan) -> Policy:
    """The policy that makes what a search found; one that leaves every layer alone where it found nothing."""
    return Policy.from_plan(plan) if plan.choices else Policy(rules=[Rule("*")])


def _export(
    loaded: LoadedModel,
    gm: GraphModule,
    path: Path,
    options: FileOptions,
    calibration: Calibration | None = None,
) -> ExportReport:
    """Write a network of the command line; a file that came in as ONNX keeps the names of its ends."""
    return to_onnx(
        gm,
        loaded.example_inputs,
        path,
        dynamic_axes=options.dynamic_axes,
        opset=options.opset,
        input_names=loaded.input_names,
        output_names=options.output_names or loaded.output_names,
        quantize=options.quantize,
        calibration=calibration,
    )
