"""The commands in one application. Exit codes: 0, 1 (failed), 2 (bad arguments), 130 (interrupted)."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from fxdecomp.cli.benching import bench
from fxdecomp.cli.caching import cache
from fxdecomp.cli.compressing import compress
from fxdecomp.cli.demonstrating import demo
from fxdecomp.cli.diffing import diff
from fxdecomp.cli.inspecting import inspect
from fxdecomp.cli.kernel_benching import bench_kernels
from fxdecomp.cli.terminal import print_error, print_text, spoken
from fxdecomp.errors import FxdecompError
from fxdecomp.version import __version__

app = typer.Typer(
    help="Low-rank decomposition of PyTorch networks, with checked and timed ONNX files.",
    epilog="A model is package.module:callable (it returns a module, or a module and its example inputs) "
    "or a .pt2 or .onnx file. Start with: fxdecomp inspect mynets:resnet",
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_COMMANDS: dict[Callable[..., Any], str] = {
    inspect: "fxdecomp inspect mynets:resnet --input 1x3x224x224",
    compress: "fxdecomp compress mynets:resnet --method tucker2 --rank 0.5 -o out",
    bench: "fxdecomp bench dense.onnx out/small.onnx --threads 1 --html bench.html",
    bench_kernels: "fxdecomp bench-kernels --precision int8 --plot kernels.svg",
    diff: "fxdecomp diff mynets:resnet --method cp --rank vbmf",
    demo: "fxdecomp demo -o demo-output",
    cache: "fxdecomp cache --clear",
}
_INTERRUPTED = 130
_STEPS = "400"

for command, example in _COMMANDS.items():
    app.command(epilog=f"Example: {example}")(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print_text(f"fxdecomp {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version")
    ] = False,
) -> None:
    """The options of every command; `main` takes `--debug` out, so that it may stand anywhere."""


def _with_steps(arguments: list[str]) -> list[str]:
    """The arguments with a number behind a bare `--recover`: typer's options have a value, or none."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=True)
    spelt = (
        [each, _STEPS] if each == "--recover" and not after.isdigit() else [each] for each, after in pairs
    )
    return [argument for part in spelt for argument in part]


def main() -> None:
    """Entry point: errors in one line with what to do."""
    logging.getLogger("fxdecomp").addHandler(logging.NullHandler())  # what it warns of, the commands print
    debug = "--debug" in sys.argv
    sys.argv = _with_steps([argument for argument in sys.argv if argument != "--debug"])
    try:
        app(prog_name="fxdecomp")  # for `python -m fxdecomp` too: completion takes its names from it
    except (KeyboardInterrupt, SystemExit) as stopped:  # typer makes an exit of an interruption
        if isinstance(stopped, SystemExit) and stopped.code != _INTERRUPTED:
            raise
        print_error("fxdecomp: interrupted; files that were not finished were not written")
        sys.exit(_INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        if not isinstance(error, FxdecompError | OSError):
            kind = type(error).__name__
            print_error(f"fxdecomp: {kind}: {error}\nThis was not foreseen; --debug shows where it happened")
            sys.exit(1)
        print_error(f"fxdecomp: {spoken(str(error))}")
        sys.exit(2 if isinstance(error, ValueError) else 1)
