"""What tells one computation from another: networks, data and settings as one hash."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence

import torch
import torch.utils._pytree as pytree
from torch import Tensor, distributed
from torch.fx import GraphModule

from fxdecomp.graphs.copies import stored_tensors


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


def _layout(gm: GraphModule) -> tuple[str, ...]:
    """The nodes of a graph and the modules that it calls, in words; addresses differ from run to run."""
    leaves = [gm.get_submodule(str(node.target)) for node in gm.graph.nodes if node.op == "call_module"]
    return tuple(re.sub(r" at 0x[0-9a-f]+", "", str(part)) for part in (gm.graph, *leaves))
