"""What the commands print: text and tables on standard output, progress and errors on standard error."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

console = Console()
messages = Console(stderr=True)


def this_command() -> str:
    """The command as it was given, to be pasted into a shell."""
    return shlex.join(["fxdecomp", *sys.argv[1:]])


def print_text(text: str) -> None:
    """Print exactly this text: names of layers may hold brackets, which rich would take for markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_error(text: str) -> None:
    """Print exactly this text on standard error."""
    messages.print(text, markup=False, highlight=False, soft_wrap=True)


def print_json(data: Any) -> None:
    """Print one JSON document."""
    print_text(json.dumps(data, indent=2))


@contextmanager
def progress_bars(*, quiet: bool) -> Iterator[Any]:
    """A progress bar on standard error, one task per kind of work."""
    from fxdecomp.progress import silent

    if quiet:
        yield silent
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeRemainingColumn(), console=messages, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def progress(work: str, done: int, total: int) -> None:
            if work not in tasks:
                tasks[work] = bars.add_task(work, total=total)
            bars.update(tasks[work], completed=done, total=total)

        yield progress
