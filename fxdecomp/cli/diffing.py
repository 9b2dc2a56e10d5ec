"""`fxdecomp diff`: two graphs, line by line."""

from __future__ import annotations

from typing import Annotated

import typer

from fxdecomp.cli.options import Inputs, Method, Model, PolicyFile, RankText, traced
from fxdecomp.cli.terminal import print_text


def diff(
    before: Model,
    after: Annotated[
        str | None, typer.Argument(help="A second model; without it, the policy is applied")
    ] = None,
    inputs: Inputs = None,
    method: Method = None,
    rank: RankText = None,
    policy: PolicyFile = None,
) -> None:
    """The graph before and after, as a unified diff."""
    from fxdecomp import graph_diff, transform
    from fxdecomp.loading import policy_from

    gm = traced(before, inputs)
    other = traced(after, inputs) if after else transform(gm, policy_from(method, rank, policy))
    print_text(graph_diff(gm, other))
