"""`fxdecomp diff`: two graphs, line by line."""

from __future__ import annotations

from typing import Annotated

import typer

from fxdecomp.cli.options import (
    Inputs,
    Method,
    Model,
    PolicyFile,
    Quiet,
    RankText,
    Seed,
    Tolerance,
    Trust,
    traced,
)
from fxdecomp.cli.terminal import console, print_error, progress_bars


def diff(
    before: Model,
    after: Annotated[
        str | None, typer.Argument(help="A second model; without it, the policy is applied")
    ] = None,
    inputs: Inputs = None,
    method: Method = None,
    rank: RankText = None,
    policy: PolicyFile = None,
    seed: Seed = 0,
    tolerance: Tolerance = None,
    trust: Trust = False,
    quiet: Quiet = False,
) -> None:
    """Show the graph before and after; nothing is written."""
    from fxdecomp import graph_diff, transform
    from fxdecomp.cli.policies import policy_from
    from fxdecomp.cli.tables import coloured_diff

    chosen = None if after else policy_from(method, rank, policy)
    options = {"trust": trust, "seed": seed, "tolerance": tolerance}
    gm = traced(before, inputs, quiet=quiet, **options)
    if chosen is None:
        other = traced(str(after), inputs, quiet=quiet, **options)
    else:
        with progress_bars(quiet=quiet) as progress:
            other = transform(gm, chosen, progress=progress)
    text = graph_diff(gm, other)
    if not text:
        why = (
            ""
            if chosen is None
            else ": no layer was replaced; `fxdecomp compress` lists each with the reason"
        )
        print_error(f"no difference{why}")
    console.print(coloured_diff(text), soft_wrap=True, end="")
