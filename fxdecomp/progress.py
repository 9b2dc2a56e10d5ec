"""The one protocol by which long work tells how far it is; the command line draws it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Called after each finished piece of work."""

    def __call__(self, work: str, done: int, total: int, layer: str = "", /) -> None:
        """`done` of `total` parts of `work` are finished, a large layer is of many; `layer` was the last."""


def silent(work: str, done: int, total: int, layer: str = "", /) -> None:
    """Tells nobody."""
