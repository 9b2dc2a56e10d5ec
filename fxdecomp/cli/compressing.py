"""`fxdecomp compress`: from a network to checked files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxdecomp.cli.options import AsJson, Inputs, Method, Model, PolicyFile, Quiet, RankText
from fxdecomp.cli.terminal import print_blocks, print_json, progress_bars, this_command


def compress(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results")],
    inputs: Inputs = None,
    method: Method = None,
    rank: RankText = None,
    policy: PolicyFile = None,
    time: Annotated[bool, typer.Option("--time", help="Write dense.onnx too, and time both")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Decompose a network into a folder of checked files.

    It writes small.onnx, small.pt2, report.html, report.json, policy.toml and graph.diff.
    """
    from fxdecomp.cli.tables import benchmark_table, layer_tables
    from fxdecomp.loading import load_model, parse_shape, policy_from
    from fxdecomp.results import compress_to

    chosen = policy_from(method, rank, policy)
    loaded = load_model(model, tuple(map(parse_shape, inputs or ())))
    with progress_bars(quiet=quiet or as_json) as progress:
        result = compress_to(loaded, chosen, out, time=time, command=this_command(), progress=progress)
    if as_json:
        print_json(result.to_dict())
        return
    timed = result.report.benchmark
    tables = layer_tables(result.report) + ([] if timed is None else [benchmark_table(timed)])
    told = [result.report.summary, *result.report.remarks, str(result.exported)]
    print_blocks(*tables, "\n".join(told), f"Everything is in {out}; open {out / 'report.html'} first")
