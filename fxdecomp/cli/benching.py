"""`fxdecomp bench`: ONNX files timed against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxdecomp.cli.options import AsJson, Quiet
from fxdecomp.cli.terminal import print_blocks, print_json, this_command, working


def bench(
    files: Annotated[list[Path], typer.Argument(help="ONNX files; ratios are taken against the first")],
    provider: Annotated[list[str] | None, typer.Option(help="ONNX Runtime execution provider")] = None,
    threads: Annotated[int, typer.Option(help="Threads; 0 for all")] = 1,
    rounds: Annotated[int, typer.Option(help="Timed rounds; every round runs each file once")] = 30,
    batch: Annotated[int | None, typer.Option(help="Batch size, where the file leaves it open")] = None,
    axis: Annotated[list[str] | None, typer.Option(help="Length of another open axis: width=400")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as one HTML page")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Time ONNX files against each other, in turn, and show where the time goes."""
    from fxdecomp.cli.tables import benchmark_table, kernel_table
    from fxdecomp.export import benchmark
    from fxdecomp.loading import parse_axes
    from fxdecomp.reporting import report_of_files

    named = dict(zip(_distinct_names(files), files, strict=True))
    lengths = parse_axes(axis or [])
    with working("timing", quiet=quiet or as_json) as renamed:
        report = benchmark(
            named,
            providers=tuple(provider or ["CPUExecutionProvider"]),
            threads=threads,
            rounds=rounds,
            batch_sizes=batch,
            axes=lengths,
            progress=renamed,
        )
    if html is not None:
        report_of_files(named, report, this_command()).to_html(html, title="fxdecomp bench")
    if as_json:
        print_json(report.to_dict())
        return
    tables = [kernel_table(name, report.kernels[name]) for name in named if name in report.kernels]
    print_blocks(benchmark_table(report), *tables)


def _distinct_names(files: list[Path]) -> list[str]:
    """The files' stems, numbered where the same stem comes again."""
    names: list[str] = []
    for file in files:
        earlier = sum(other.stem == file.stem for other in files[: len(names)])
        names.append(f"{file.stem} ({earlier + 1})" if earlier else file.stem)
    return names
