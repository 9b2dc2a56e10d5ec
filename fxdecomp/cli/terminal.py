"""What the commands print: text and tables on standard output, progress and errors on standard error."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fxdecomp.errors import printable

console = Console(emoji=False)  # `:x:` may be the name of a layer
messages = Console(stderr=True, emoji=False)

_ARGUMENTS = "calibration|metric|max_drop|quantize|opset|method|provider|threads|output_names|dynamic_axes"


def this_command() -> str:
    """The command as it was given, to be pasted into a shell."""
    return shlex.join(["fxdecomp", *sys.argv[1:]])


def print_text(text: str) -> None:
    """Print exactly this text: names of layers may hold brackets, which rich would take for markup."""
    console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def print_blocks(*blocks: RenderableType) -> None:
    """Print tables and texts with an empty line between them; none wider than the terminal."""
    for index, block in enumerate(blocks):
        if index:
            console.print()
        shown = printable(block) if isinstance(block, str) else block
        console.print(shown, markup=False, highlight=False)


def print_error(text: str) -> None:
    """Print exactly this text on standard error."""
    messages.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def print_json(data: Any) -> None:
    """Print one JSON document."""
    print_text(json.dumps(data, indent=2, allow_nan=False))


def spoken(text: str) -> str:
    """A message of the library in the command line's words: `--calibration`, not `calibration=`.

    Example:
        >>> spoken("give calibration=batches, or a metric=")
        'give --calibration, or a --metric'
        >>> spoken("pass opset=18"), spoken("add method='svd'"), spoken("search(max_drop=...) finds it")
        ('pass --opset 18', 'add --method svd', '--max-drop finds it')
        >>> spoken("such as shapes=((1, 3, 224, 224), (1, 8))"), spoken("give it with axes={'width': ...}")
        ('such as --input 1x3x224x224 --input 1x8', 'give it with --axis width=...')
    """
    text = re.sub(r"\bsearch\((\w+=)\.\.\.\)", r"\1", text)
    text = re.sub(r"\baxes=\{'(\w+)': \.\.\.\}", r"--axis \1=...", text)
    text = re.sub(r"\bshapes=\((\(.*\)),?\)", _inputs, text)

    def option(found: re.Match[str]) -> str:
        value = "" if found[2] in (None, "batches") else f" {found[2]}"
        return f"--{found[1].replace('_', '-')}{value}"

    return re.sub(rf"\b({_ARGUMENTS})=(?:'?(\w+)'?)?", option, text)


def _inputs(found: re.Match[str]) -> str:
    """Shapes as options."""
    shapes = re.findall(r"\(([\d, ]*)\)", found[1])
    return " ".join(f"--input {'x'.join(shape.replace(' ', '').strip(',').split(','))}" for shape in shapes)


@contextmanager
def progress_bars(*, quiet: bool) -> Iterator[Any]:
    """Progress bars with an estimate of the time left, on standard error, one for each kind of work."""
    from fxdecomp.progress import silent

    if quiet or not messages.is_terminal:
        yield silent
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
    left = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, *left, console=messages, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def progress(work: str, done: int, total: int, layer: str = "", /) -> None:
            if work not in tasks:
                tasks[work] = bars.add_task(work, total=total)
            words = printable(f"{work} {layer}".strip())
            bars.update(tasks[work], completed=done, total=total, description=words)

        yield progress


@contextmanager
def working(work: str, *, quiet: bool) -> Iterator[None]:
    """A sign of life with the time so far, for work of unknown length."""
    if quiet or not messages.is_terminal:
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=messages, transient=True) as bars:
        bars.add_task(printable(work), total=None)
        yield
