"""Memory that is free, but not yet given back."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress
from functools import cache

from torch import nn

LARGE_BYTES = 64 << 20
"""Memory that is worth a search for it."""


def give_back_memory() -> None:
    """Let the C library return to the system what was freed, where it can.

    glibc keeps freed pieces for what comes next, in an arena for every thread: after the temporaries of a
    large layer that is as much as they were, and the process never gets smaller. Cost: a millisecond.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


def give_back_graphs(like: nn.Module) -> None:
    """The same, after graphs that are done with: they refer to themselves, and wait for the collector.

    Args:
        like: As large as one of them. Small ones may wait: the collector takes a fifth of a second and more.
    """
    sizes = (each.numel() * each.element_size() for each in like.parameters())  # a sparse one has no nbytes
    if sum(sizes) >= LARGE_BYTES:
        gc.collect()
        give_back_memory()


@cache
def _trim() -> ctypes._NamedFuncPointer | None:
    with suppress(OSError, AttributeError):  # another C library, or another system
        return ctypes.CDLL(None).malloc_trim
    return None
