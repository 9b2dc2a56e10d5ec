"""Checkpoints: whole or not there at all, and only ever read by the run that they belong to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from fxdecomp.errors import RecoveryError
from fxdecomp.files import write_with_torch


def save_atomically(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state so that a reader sees the old file or the new one, never a part.

    Args:
        path: The file; its folder must exist.
        state: Tensors and plain data.

    Raises:
        WriteError: The disk is full; the old file is still there.
    """
    write_with_torch(path, lambda file: torch.save(dict(state), file))


def load_checkpoint(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """The state that a run left, None where there is no file.

    Raises:
        RecoveryError: The file is damaged, or belongs to a run with other networks, data or settings.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RecoveryError(
            f"checkpoint {path} cannot be read ({error}); delete it to start afresh"
        ) from error
    if not isinstance(state, dict):
        raise RecoveryError(
            f"checkpoint {path} cannot be read (it holds no state); delete it to start afresh"
        )
    if state.get("fingerprint") != fingerprint:
        raise RecoveryError(
            f"checkpoint {path} is of a run with other networks, data or settings; "
            "delete it, or use another path"
        )
    return state


def name_of(function: Callable[..., Any] | None) -> str:
    """What tells one function from another in a file; the type's name for objects, empty for None."""
    if function is None:
        return ""
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}:{kind.__qualname__}"
