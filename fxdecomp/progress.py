"""The one protocol by which long work tells how far it is; the command line draws it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called after each finished piece of work."""

    def __call__(self, work: str, done: int, total: int) -> None:
        """`done` of `total` pieces of `work` are finished."""


def silent(work: str, done: int, total: int) -> None:
    """Tells nobody."""
