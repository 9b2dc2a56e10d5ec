"""The page of the command line, from the program itself: `python -m benchmarks.cli_page docs/cli.md`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer.main

from fxdecomp.cli import app
from fxdecomp.cli.settings import PRESETS

_HEAD = """# Command line

Written by `python -m benchmarks.cli_page docs/cli.md` from the program; not by hand.

A *model* is `package.module:callable` or `file.py:callable`, with plain arguments where it takes any
(`mynets:resnet(50, width=0.5)`), or a `.pt2` or `.onnx` file. A callable returns a module, or a module and
its example inputs. A *function* for `--calibration` or `--metric` is named in the same way.

Exit codes: 0, 1 (it failed, or a gate such as `--fail-under` says no), 2 (wrong arguments), 130
(interrupted). `--debug` shows the traceback of an error. `fxdecomp --install-completion` completes commands
and options in your shell.
"""


def page() -> str:
    """The whole page."""
    group: Any = typer.main.get_command(app)
    parts = [_HEAD]
    for name, command in group.commands.items():
        parts.append(_command(name, command))
        if name == "compress":
            parts.append(_presets())
    return "\n".join(parts)


def _command(name: str, command: Any) -> str:
    lines = [
        f"## fxdecomp {name}",
        "",
        *_paragraphs(command.help),
        f"    {str(command.epilog).removeprefix('Example: ')}",
    ]
    lines += ["", "| argument or option | meaning | default |", "|---|---|---|"]
    for parameter in command.params:
        lines.append(f"| {_names(parameter)} | {_cell(parameter.help or '')} | {_default(parameter)} |")
    return "\n".join(lines) + "\n"


def _paragraphs(text: str) -> list[str]:
    return [line for part in text.strip().split("\n\n") for line in (" ".join(part.split()), "")]


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{str(parameter.name).upper()}`"
    return ", ".join(f"`{name}`" for name in sorted(parameter.opts, key=len, reverse=True))


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    return "" if value in (None, False, 0, ()) or value == [] else f"`{value}`"


def _presets() -> str:
    lines = ["A preset stands for options; what is given besides wins, and so does a `--config` file.", ""]
    lines += ["| preset | stands for |", "|---|---|"]
    for name, options in PRESETS.items():
        words = [
            f"--{key.replace('_', '-')}{'' if value is True else f' {value}'}"
            for key, value in options.items()
        ]
        lines.append(f"| `{name}` | `{' '.join(words)}` |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
