"""`fxdecomp bench`: ONNX files timed against each other, or two saved benchmarks compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxdecomp.cli.options import AsJson, Quiet
from fxdecomp.cli.terminal import print_blocks, print_json, print_text, progress_bars, this_command


def bench(
    files: Annotated[list[Path], typer.Argument(help="ONNX files; ratios are taken against the first")],
    provider: Annotated[
        list[str] | None, typer.Option(help="cpu, cuda, openvino, ..., or its full name")
    ] = None,
    provider_option: Annotated[
        list[str] | None, typer.Option(help="Option of a provider: cuda:device_id=1")
    ] = None,
    threads: Annotated[list[int] | None, typer.Option(help="Threads; 0 for all")] = None,
    rounds: Annotated[int, typer.Option(help="Timed rounds; every round runs each file once")] = 30,
    batch: Annotated[list[int] | None, typer.Option(help="Batch size of files that leave it open")] = None,
    axis: Annotated[list[str] | None, typer.Option(help="Length of another open axis: width=400")] = None,
    memory: Annotated[bool, typer.Option("--memory", help="Measure peak memory too")] = False,
    html: Annotated[Path | None, typer.Option(help="Write the report as one HTML page")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Compare two outputs of --json")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Time ONNX files against each other, in turn, and show where the time goes."""
    from fxdecomp.cli.loading import parse_axes, parse_provider_options
    from fxdecomp.cli.tables import benchmark_table, kernel_table
    from fxdecomp.export import benchmark
    from fxdecomp.export.sessions import provider_of
    from fxdecomp.files import check_file
    from fxdecomp.reporting import report_of_files

    if compare:
        _compare(files, as_json=as_json)
        return
    if html is not None:
        check_file(html)
    named = dict(zip(_distinct_names(files), files, strict=True))
    axes, options = parse_axes(axis or []), parse_provider_options(provider_option or [])
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
        return
    tables = [kernel_table(name, report.kernels[name]) for name in named if name in report.kernels]
    print_blocks(benchmark_table(report), *tables)


def _compare(files: list[Path], *, as_json: bool) -> None:
    from fxdecomp.errors import BenchmarkError
    from fxdecomp.export import BenchmarkReport, compare

    if len(files) != 2:
        raise BenchmarkError(f"--compare takes two saved benchmarks, the old and the new; got {len(files)}")
    found = compare(*map(BenchmarkReport.load, files))
    if as_json:
        print_json(found.to_dict())
    else:
        print_text(str(found))


def _distinct_names(files: list[Path]) -> list[str]:
    """The files' stems, numbered where the same stem comes again."""
    names: list[str] = []
    for file in files:
        earlier = sum(other.stem == file.stem for other in files[: len(names)])
        names.append(f"{file.stem} ({earlier + 1})" if earlier else file.stem)
    return names
