"""Checkpoints: whole or not there at all, and only ever read by the run that they belong to."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, distributed
from torch.fx import GraphModule

from fxdecomp.errors import RecoveryError
from fxdecomp.files import write_with_torch
from fxdecomp.graphs.copies import stored_tensors


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


def fingerprint(settings: Mapping[str, object], networks: Sequence[GraphModule], data: object) -> str:
    """A hash of what decides the result of a run, of each process.

    Args:
        settings: Plain data.
        networks: What they compute and the bytes of their tensors count.
        data: Any structure, of whose tensors the bytes count.
    """
    plain = (sorted(settings.items()), [_layout(gm) for gm in networks])
    digest = hashlib.sha256(repr(plain).encode())
    given = [leaf for leaf in pytree.tree_leaves(data) if isinstance(leaf, Tensor)]
    for tensor in (*itertools.chain.from_iterable(map(stored_tensors, networks)), *given):
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    hashes: list[str] = [digest.hexdigest()]
    if distributed.is_initialized():  # each process has data of its own, and all must name the file alike
        hashes = hashes * distributed.get_world_size()
        distributed.all_gather_object(hashes, digest.hexdigest())
    return " ".join(hashes)


def name_of(function: Callable[..., Any] | None) -> str:
    """What tells one function from another in a file; the type's name for objects, empty for None."""
    if function is None:
        return ""
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}:{kind.__qualname__}"


def _layout(gm: GraphModule) -> tuple[str, ...]:
    """The nodes of a graph and the modules that it calls, in words; addresses differ from run to run."""
    leaves = [gm.get_submodule(str(node.target)) for node in gm.graph.nodes if node.op == "call_module"]
    return tuple(re.sub(r" at 0x[0-9a-f]+", "", str(part)) for part in (gm.graph, *leaves))
