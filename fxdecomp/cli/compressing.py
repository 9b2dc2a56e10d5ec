"""`fxdecomp compress`: from a network to checked files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxdecomp.cli.options import AsJson, Inputs, Method, Model, PolicyFile, Quiet, RankText, Trust
from fxdecomp.cli.terminal import print_blocks, print_json, progress_bars, this_command


def compress(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results")],
    inputs: Inputs = None,
    method: Method = None,
    rank: RankText = None,
    policy: PolicyFile = None,
    budget: Annotated[
        str | None, typer.Option(help="macs:0.5, params:0.5, latency:0.5 or latency:10ms")
    ] = None,
    calibration: Annotated[str | None, typer.Option(help="module:function giving unlabelled batches")] = None,
    metric: Annotated[
        str | None, typer.Option(help="module:function of a network: told of every network, before and after")
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="Search: the fastest network that loses at most this")
    ] = None,
    provider: Annotated[
        str | None, typer.Option(help="Where time is measured: cpu, cuda, or a full name")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of the timing; 0 for all")] = 1,
    evaluations: Annotated[int, typer.Option(help="Networks that a search judges")] = 6,
    quantize: Annotated[str | None, typer.Option(help="int8 or fp16: write a second, smaller file")] = None,
    time: Annotated[bool, typer.Option("--time", help="Write dense.onnx too, and time all files")] = False,
    trust: Trust = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Decompose a network into a folder of checked files.

    A search (--max-drop) that was interrupted goes on when the same command is given again.
    """
    from fxdecomp.cli.goals import goal_from, load_calibration, load_metric, parse_budget, policy_for
    from fxdecomp.cli.loading import load_model, parse_shape
    from fxdecomp.cli.tables import benchmark_table, layer_tables
    from fxdecomp.compressing import compress_to, written_by_compress
    from fxdecomp.export.sessions import provider_of
    from fxdecomp.files import check_replaces_none

    read = [Path(model)] if policy is None else [Path(model), policy]
    check_replaces_none(written_by_compress(out, quantize=quantize, time=time), read)
    judge = load_metric(metric)
    goal = goal_from(max_drop, judge, provider, threads, evaluations)
    wanted = None if budget is None else parse_budget(budget, provider, threads)
    chosen = policy_for(method, rank, policy, wanted, searched=goal is not None)
    batches = load_calibration(calibration)
    loaded = load_model(model, tuple(map(parse_shape, inputs or ())), trust=trust)
    with progress_bars(quiet=quiet or as_json) as progress:
        result = compress_to(
            loaded,
            chosen,
            out,
            calibration=batches,
            goal=goal,
            metric=judge,
            quantize=quantize,  # type: ignore[arg-type]  # what is not among the names is refused in words
            time=time,
            provider=provider_of(provider or "cpu"),
            threads=threads,
            command=this_command(),
            progress=progress,
        )
    if as_json:
        print_json(result.to_dict())
        return
    timed = result.report.benchmark
    tables = layer_tables(result.report) + ([] if timed is None else [benchmark_table(timed)])
    told = [] if result.search is None else [str(result.search)]
    qualities = [each.quality for each in result.judged.values() if each.quality is not None]
    told += [result.report.summary, *(quality.sentence for quality in qualities)]
    told += [each.text for each in result.judged.values() if each.text]
    told += [*result.report.remarks, str(result.exported)]
    told += [] if result.quantised is None else [str(result.quantised)]
    if timed is not None and timed.ratio("dense", "small").low <= 1:
        told.append(
            "small was not shown to be faster: ship dense, or try --budget latency:0.5 (docs/questions.md)"
        )
    last = [f"Everything is in {out}; open {out / 'report.html'} first"]
    last += [quality.warning for quality in qualities if quality.warning]
    print_blocks(*tables, "\n".join(told), *last)
