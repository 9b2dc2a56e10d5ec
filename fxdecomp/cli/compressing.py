"""`fxdecomp compress`: from a network to checked files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxdecomp.cli.options import AsJson, Inputs, Method, Model, PolicyFile, Quiet, RankText
from fxdecomp.cli.terminal import print_json, print_text, progress_bars, this_command


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
    """Decompose a network; write small.onnx, small.pt2, report.html and .json, policy.toml, graph.diff."""
    from fxdecomp.loading import load_model, parse_shape, policy_from
    from fxdecomp.results import compress_to

    chosen = policy_from(method, rank, policy)
    loaded = load_model(model, tuple(map(parse_shape, inputs or ())))
    with progress_bars(quiet=quiet or as_json) as progress:
        result = compress_to(loaded, chosen, out, time=time, command=this_command(), progress=progress)
    if as_json:
        print_json(result.to_dict())
        return
    print_text(str(result.report))
    print_text(str(result.exported))
    if result.report.benchmark is not None:
        print_text(str(result.report.benchmark))
