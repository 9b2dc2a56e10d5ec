"""`fxdecomp demo`: the main job on a real pretrained network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxdecomp.cli.options import AsJson, Quiet
from fxdecomp.cli.terminal import print_blocks, print_json, progress_bars, this_command


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results")] = Path("demo-output"),
    lines: Annotated[int, typer.Option(help="Lines of text to judge by")] = 500,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compress a pretrained text recogniser, and read with it."""
    from fxdecomp.cli.tables import benchmark_table, kernel_table, layer_tables
    from fxdecomp.demo import run_demo

    with progress_bars(quiet=quiet or as_json) as progress:
        result = run_demo(out, lines=lines, command=this_command(), progress=progress)
    if as_json:
        print_json(result.to_dict())
        return
    kernels = [kernel_table(name, rows) for name, rows in result.timings.kernels.items()]
    tables = [*layer_tables(result.layers), *kernels]
    print_blocks(*tables, result.readings_text, benchmark_table(result.timings), result.written_text)
