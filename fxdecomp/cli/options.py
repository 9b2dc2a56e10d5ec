"""The arguments and options that several commands share, and what they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fxdecomp.cli.references import check_model


def _model(text: str) -> str:
    """A reference that may lead to a model, refused at once where it cannot."""
    check_model(text)
    return text


Model = Annotated[
    str,
    typer.Argument(
        help="package.module:callable, net.py:callable(32), or a .pt2 or .onnx file", callback=_model
    ),
]
Inputs = Annotated[list[str] | None, typer.Option("--input", help="Shape of an example input: 1x3x224x224")]
Method = Annotated[str | None, typer.Option(help="svd, tucker2, cp, cp3, spatial_svd, ...")]
RankText = Annotated[str | None, typer.Option("--rank", help="vbmf, energy:0.9, a share 0.5, 32, or 64,32")]
PolicyFile = Annotated[
    Path | None,
    typer.Option("--policy", help="A policy in TOML, or an .onnx file's own plan"),
]
Provider = Annotated[str, typer.Option(help="cpu, cuda, openvino, ..., or its full name")]
Trust = Annotated[
    bool, typer.Option("--trust", help="Open a .pt2 file of your own that holds pickles: it may run anything")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress")]


def traced(reference: str, inputs: list[str] | None, *, quiet: bool, trust: bool = False) -> Any:
    """The graph of the model that `reference` names, traced with example inputs of these shapes."""
    from fxdecomp import trace
    from fxdecomp.cli.loading import load_model, parse_shape
    from fxdecomp.cli.terminal import working

    shapes = tuple(map(parse_shape, inputs or ()))
    with working(f"tracing {reference}", quiet=quiet):
        loaded = load_model(reference, shapes, trust=trust)
        return trace(loaded.model, loaded.example_inputs)
