"""Checkpoints: whole or not there at all, and only ever read by the run that they belong to."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from fxdecomp.errors import RecoveryError


def save_atomically(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state so that a reader sees the old file or the new one, never a part.

    Args:
        path: The file; its folder must exist.
        state: Tensors and plain data.
    """
    descriptor, name = tempfile.mkstemp(prefix=path.name, suffix=".part", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


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
    if state.get("fingerprint") != fingerprint:
        raise RecoveryError(
            f"checkpoint {path} is of a run with other networks, data or settings; "
            "delete it, or use another path"
        )
    return state


def fingerprint(settings: Mapping[str, object], tensors: Iterable[Tensor]) -> str:
    """A hash of what decides the result of a run, settings and the bytes of tensors, of each process."""
    digest = hashlib.sha256(repr(sorted(settings.items())).encode())
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    hashes: list[str] = [digest.hexdigest()]
    if distributed.is_initialized():  # each process has data of its own, and all must name the file alike
        hashes = hashes * distributed.get_world_size()
        distributed.all_gather_object(hashes, digest.hexdigest())
    return " ".join(hashes)
