"""The commands in one application. Exit codes: 0, 1 (failed), 2 (bad arguments)."""

from __future__ import annotations

import sys

import typer

from fxdecomp.cli.benching import bench
from fxdecomp.cli.caching import cache
from fxdecomp.cli.compressing import compress
from fxdecomp.cli.demonstrating import demo
from fxdecomp.cli.diffing import diff
from fxdecomp.cli.inspecting import inspect
from fxdecomp.cli.terminal import print_error
from fxdecomp.errors import FxdecompError

app = typer.Typer(
    help="Low-rank decomposition of PyTorch networks, with checked and timed ONNX files.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (inspect, compress, bench, diff, demo, cache):
    app.command()(command)


def main() -> None:
    """Entry point: errors in one line with what to do; `--debug` before the command shows the traceback."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app()
    except FxdecompError as error:
        if debug:
            raise
        print_error(f"fxdecomp: {error}")
        sys.exit(2 if isinstance(error, ValueError) else 1)
