"""What every test checks of every pass: its input stays as it was, and a second run changes nothing."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxdecomp.passes import DecomposeLayers, FoldBatchNorm
from fxdecomp.passes.base import Pass

Call = Callable[[Pass, GraphModule], GraphModule]
_LARGE = 1 << 20


def fingerprint(gm: GraphModule) -> tuple[object, ...]:
    """The code of a graph, and each tensor's size and numbers; of large tensors their version alone."""
    tensors = {**dict(gm.named_parameters()), **dict(gm.named_buffers())}
    return str(gm.graph), *((name, tuple(t.shape), _numbers(t)) for name, t in sorted(tensors.items()))


def _numbers(tensor: Tensor) -> int:
    if tensor.numel() > _LARGE or tensor.is_meta or tensor.layout is not torch.strided:
        return tensor._version
    return zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def checked(call: Call) -> Call:
    """The `__call__` of passes, which also raises AssertionError where the contract is broken.

    Only passes that take no data run twice: folding, and decomposing at given ranks.
    """

    @functools.wraps(call)
    def both(self: Pass, gm: GraphModule) -> GraphModule:
        before = fingerprint(gm)
        result = call(self, gm)
        assert fingerprint(gm) == before, f"{self.name} changed the graph that it was given"
        is_given = isinstance(self, DecomposeLayers) and self.work is None and self.policy.budget is None
        if is_given or isinstance(self, FoldBatchNorm):
            assert fingerprint(call(self, result)) == fingerprint(result), f"{self.name} is not done at once"
        return result

    return both
