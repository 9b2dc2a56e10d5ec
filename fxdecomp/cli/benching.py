"""`fxdecomp bench`: ONNX files timed against each other, or two saved benchmarks compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fxdecomp.cli.options import SHORT, AsJson, ProviderOptions, Quiet, checked_provider, one_of
from fxdecomp.cli.terminal import (
    print_blocks,
    print_error,
    print_json,
    print_text,
    progress_bars,
    this_command,
)
from fxdecomp.cli.words import parse_axes, parse_provider_options

if TYPE_CHECKING:
    from fxdecomp.export import Ratio


def bench(
    files: Annotated[list[Path], typer.Argument(help="ONNX files; ratios are taken against the first")],
    provider: Annotated[
        list[str] | None,
        typer.Option(
            help="cpu, cuda, openvino, ..., or its full name",
            callback=checked_provider,
            autocompletion=one_of(*SHORT),
        ),
    ] = None,
    provider_option: ProviderOptions = None,
    threads: Annotated[list[int] | None, typer.Option(min=0, max=4096, help="Threads; 0 for all")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds; every round runs each file once")] = 30,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Batch size of files that leave it open")
    ] = None,
    axis: Annotated[list[str] | None, typer.Option(help="Length of another open axis: width=400")] = None,
    memory: Annotated[bool, typer.Option("--memory", help="Measure peak memory too")] = False,
    html: Annotated[Path | None, typer.Option(help="Write the report as one HTML page")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Compare two outputs of --json")] = False,
    fail_under: Annotated[
        float | None,
        typer.Option(
            min=0, help="Exit with 1 where a file is not this many times as fast as the first, or as before"
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Time ONNX files in turn, and show where the time goes.

    A provider that is not there, or leaves layers to another, is a row that says so.
    Exits with 1 where a file could be timed nowhere.
    """
    axes = parse_axes(axis or [])
    options = parse_provider_options(provider_option or [], provider or ["cpu"])
    for file in files:
        if not file.is_file():
            raise typer.BadParameter(f"there is no file {file}")
    if compare and len(files) != 2:
        raise typer.BadParameter(
            f"--compare takes two saved benchmarks, the old and the new; got {len(files)}"
        )
    if fail_under is not None and len(files) == 1:
        raise typer.BadParameter("--fail-under compares with the first file: name another behind it")

    from fxdecomp.cli.tables import benchmark_table, kernel_table
    from fxdecomp.export import benchmark
    from fxdecomp.files import check_file
    from fxdecomp.providers import provider_of
    from fxdecomp.reporting import report_of_files

    if compare:
        _compare(files, fail_under, as_json=as_json)
        return
    if html is not None:
        check_file(html)
    named = dict(zip(_distinct_names(files), files, strict=True))
    with progress_bars(quiet=quiet or as_json) as progress:
        report = benchmark(
            named,
            providers=[provider_of(name) for name in provider or ["cpu"]],
            threads=threads or 1,
            rounds=rounds,
            batch_sizes=batch,
            axes=axes,
            provider_options=options,
            memory=memory,
            progress=progress,
        )
    if html is not None:
        report_of_files(named, report, this_command()).to_html(html, title="fxdecomp bench")
    if as_json:
        print_json(report.to_dict())
    else:
        tables = [kernel_table(name, report.kernels[name]) for name in named if name in report.kernels]
        print_blocks(benchmark_table(report), *tables)
    for row in report.problems:
        print_error(f"fxdecomp: {row.model} on {row.provider} was not timed: {row.problem}")
    if set(named) - set(report.median_s):
        raise typer.Exit(1)
    if fail_under is not None:
        first, *others = named
        _require(fail_under, {name: report.ratio(first, name) for name in others})


def _require(fail_under: float, ratios: Mapping[str, Ratio]) -> None:
    """Exit with 1 where a file is not fast enough."""
    slow = {name: ratio for name, ratio in ratios.items() if ratio.value < fail_under}
    for name, ratio in slow.items():
        print_error(f"fxdecomp: {name} is {ratio} as fast, wanted {fail_under:g}x at least")
    if slow:
        raise typer.Exit(1)


def _compare(files: list[Path], fail_under: float | None, *, as_json: bool) -> None:
    from fxdecomp.export import BenchmarkReport, compare

    found = compare(*map(BenchmarkReport.load, files))
    if as_json:
        print_json(found.to_dict())
    else:
        print_text(str(found))
    if fail_under is not None:
        rows = {f"{r.model} ({r.provider}, {r.threads} thread(s), batch {r.batch})": r for r in found.rows}
        _require(fail_under, {name: row.speedup for name, row in rows.items()})


def _distinct_names(files: list[Path]) -> list[str]:
    """The files' stems, numbered where the same stem comes again."""
    names: list[str] = []
    for file in files:
        earlier = sum(other.stem == file.stem for other in files[: len(names)])
        names.append(f"{file.stem} ({earlier + 1})" if earlier else file.stem)
    return names
