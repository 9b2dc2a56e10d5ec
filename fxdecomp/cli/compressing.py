"""`fxdecomp compress`: from a network to checked files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fxdecomp.cli.options import (
    PRECISIONS,
    SHORT,
    AsJson,
    Inputs,
    Method,
    Model,
    PolicyFile,
    ProviderOptions,
    Quiet,
    RankText,
    Seed,
    Threads,
    Tolerance,
    Trust,
    checked_precision,
    checked_provider,
    checked_reference,
    one_of,
)
from fxdecomp.cli.settings import POLICY_TABLE, PRESETS, settings_text, use_config, use_preset
from fxdecomp.cli.terminal import print_blocks, print_json, progress_bars, spoken, this_command
from fxdecomp.cli.words import (
    parse_dynamic_axes,
    parse_input,
    parse_numbers,
    parse_provider_options,
    parse_size,
)
from fxdecomp.errors import CalibrationError

if TYPE_CHECKING:
    from fxdecomp.compressing import CompressResult


def compress(
    context: typer.Context,
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results")],
    inputs: Inputs = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="safe: --max-drop 0.01; balanced: --budget macs:0.5; small: --budget params:0.3 "
            "--quantize int8; all with --time",
            callback=use_preset,
            autocompletion=one_of(*PRESETS),
        ),
    ] = None,
    method: Method = None,
    rank: RankText = None,
    policy: PolicyFile = None,
    rule: Annotated[
        list[str] | None, typer.Option(help="Some layers otherwise: 'head.*=svd:0.5', 'stem=' left alone")
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Layers that are left alone: 'stem.*'")] = None,
    budget: Annotated[
        str | None, typer.Option(help="macs:0.5, params:0.5, latency:0.5 or latency:10ms")
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="module:function giving unlabelled batches, or an .npz file", callback=checked_reference
        ),
    ] = None,
    made_up: Annotated[
        bool | None,
        typer.Option(
            "--made-up/--no-made-up",
            help="Make inputs up to fit to where none or few are given; by default under a budget",
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of pictures for calibration, 256 at most")
    ] = None,
    image_size: Annotated[str | None, typer.Option(help="224x224; by default the example's")] = None,
    mean: Annotated[str, typer.Option(help="Taken from pictures of 0 to 1: 0.485,0.456,0.406")] = "0",
    std: Annotated[str, typer.Option(help="What they are divided by")] = "1",
    metric: Annotated[
        str | None,
        typer.Option(
            help="module:function of a network: told of every network, before and after",
            callback=checked_reference,
        ),
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="Search: the fastest network that loses no more")
    ] = None,
    evaluations: Annotated[int, typer.Option(min=1, help="Networks that a search judges")] = 6,
    recover: Annotated[
        int, typer.Option(min=0, metavar="[STEPS]", help="Train towards the original; 400 steps if unsaid")
    ] = 0,
    quantize: Annotated[
        str | None,
        typer.Option(
            help="int8 or fp16: write a second, smaller file",
            callback=checked_precision,
            autocompletion=one_of(*PRECISIONS),
        ),
    ] = None,
    opset: Annotated[int | None, typer.Option(min=1, help="ONNX operator set of the files")] = None,
    dynamic_axes: Annotated[
        str | None, typer.Option(help="Axes of free length beside the batch: 2,3")
    ] = None,
    output_names: Annotated[str | None, typer.Option(help="Names of the outputs: boxes,scores")] = None,
    time: Annotated[bool, typer.Option("--time", help="Write dense.onnx too, and time all files")] = False,
    provider: Annotated[
        str | None,
        typer.Option(
            help="Where time is measured: cpu, cuda, or a full name",
            callback=checked_provider,
            autocompletion=one_of(*SHORT),
        ),
    ] = None,
    provider_option: ProviderOptions = None,
    threads: Threads = 1,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Options in TOML, as run.toml among the results", callback=use_config, is_eager=True
        ),
    ] = None,
    seed: Seed = 0,
    tolerance: Tolerance = None,
    trust: Trust = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Decompose a network into a folder of checked files.

    The files of an earlier run in the folder are replaced together, or stay where this one fails. A search
    (--max-drop) that was interrupted goes on when the same command is given again.
    """
    size = None if image_size is None else parse_size(image_size)
    axes = () if dynamic_axes is None else parse_dynamic_axes(dynamic_axes)
    settings = parse_provider_options(provider_option or [], [provider or "cpu"])
    options = next(iter(settings.values()), None)
    means, stds = parse_numbers(mean, "--mean"), parse_numbers(std, "--std")
    if images is not None and (calibration is not None or not images.is_dir()):
        why = "give --calibration or --images, not both" if calibration else f"there is no folder {images}"
        raise CalibrationError(why)
    if (recover or quantize == "int8") and calibration is None and images is None:
        raise CalibrationError(
            f"--{'recover' if recover else 'quantize int8'} needs inputs: add --calibration or --images"
        )

    from fxdecomp.cli.batches import as_taken, load_calibration, load_pictures
    from fxdecomp.cli.goals import goal_from, load_metric
    from fxdecomp.cli.loading import load_model
    from fxdecomp.cli.policies import parse_budget, parse_rule, policy_from
    from fxdecomp.compressing import FileOptions, compress_to, run_files
    from fxdecomp.files import check_replaces_none
    from fxdecomp.providers import provider_of

    given = [Path(model), *([] if policy is None else [policy])]
    given += [Path(calibration)] if calibration and calibration.endswith((".npz", ".npy")) else []
    check_replaces_none(run_files(out, quantize=quantize, time=time), given)
    judge = load_metric(metric)
    goal = goal_from(max_drop, judge, provider, threads, evaluations, options)
    table = None if policy is not None else context.meta.get(POLICY_TABLE)
    chosen = policy_from(
        method,
        rank,
        policy,
        table=table,
        budget=None if budget is None else parse_budget(budget, provider, threads, options),
        searched=goal is not None,
        rules=[parse_rule(text) for text in rule or ()],
        exclude=exclude or (),
        made_up=made_up,
    )
    loaded = load_model(
        model,
        tuple(map(parse_input, inputs or ())),
        trust=trust,
        seed=seed,
        tolerance=tolerance,
        calibration=calibration,
    )
    if images is None:
        batches = load_calibration(calibration, loaded.example_inputs)
    else:
        batches = load_pictures(images, loaded.example_inputs, size=size, mean=means, std=stds)
    own = images is not None or (calibration or "").endswith((".npz", ".npy"))
    if own and batches is not None and model.endswith(".onnx"):
        batches = as_taken(batches, loaded.model, loaded.example_inputs)  # type: ignore[arg-type]  # a graph
    with progress_bars(quiet=quiet or as_json) as progress:
        result = compress_to(
            loaded,
            chosen,
            out,
            calibration=batches,
            goal=goal,
            metric=judge,
            recovery_steps=recover,
            files=FileOptions(
                quantize,  # type: ignore[arg-type]  # checked above
                opset,
                axes,
                None if output_names is None else tuple(output_names.split(",")),
            ),
            time=time,
            provider=provider_of(provider or "cpu"),
            threads=threads,
            provider_options=options,
            command=this_command(),
            settings=settings_text(context, table if policy is None else _table_of(policy)),
            progress=progress,
        )
    if as_json:
        print_json(result.to_dict())
    else:
        _tell(result, out)


def _table_of(policy: Path) -> dict[str, Any] | None:
    """A policy file as a table; an .onnx file stays a file."""
    import tomllib

    return None if policy.suffix == ".onnx" else tomllib.loads(policy.read_text(encoding="utf-8"))


def _tell(result: CompressResult, out: Path) -> None:
    from fxdecomp.cli.tables import benchmark_table, layer_tables

    timed, verdict = result.report.benchmark, result.report.verdict
    tables = layer_tables(result.report) + ([] if timed is None else [benchmark_table(timed)])
    lines = [] if result.search is None else [str(result.search)]
    qualities = [each.quality for each in result.judged.values() if each.quality is not None]
    lines += [result.report.summary, *(quality.sentence for quality in qualities)]
    lines += [each.text for each in result.judged.values() if each.text]
    lines += [] if timed is None else [f"{row.model} was not timed: {row.problem}" for row in timed.problems]
    lines += [*map(spoken, result.report.remarks), str(result.exported)]
    lines += [] if result.quantised is None else [str(result.quantised)]
    last = [f"Everything is in {out}; open {out / 'report.html'} first"]
    last += [quality.warning for quality in qualities if quality.warning]
    if verdict is not None:
        hint = "" if timed is not None else "; --time tells whether it is faster"
        if verdict.ship == "dense":
            lost = any(quality.is_poor for quality in qualities)
            hint = "; try " + (
                "a larger budget, or --recover" if lost else "--budget latency:0.5, or --max-drop"
            )
        last.append(f"Verdict: ship {verdict.ship}.onnx: {verdict.why}{hint}")
    print_blocks(*tables, "\n".join(lines), *last)
