"""Runs that leave no trace: the network's buffers, the inputs and the random state are what they were."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from fxdecomp.graphs.inputs import ExampleInputs, call_arguments
from fxdecomp.graphs.spelling import keywords_spelled

_P = ParamSpec("_P")
_R = TypeVar("_R")

_ALONE = threading.RLock()


def one_at_a_time(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let a function run in one thread of the process at a time, together with all others so marked.

    torch's tracers change `nn.Module.__call__` and more for the whole process, and a run that leaves no trace
    puts the random state, the switch of fast attention and the network's buffers back as it ends: two at once
    would put back each other's.
    """

    @functools.wraps(function)
    def alone(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with _ALONE, keywords_spelled():
            return function(*args, **kwargs)

    return alone


@contextmanager
def full_precision() -> Iterator[None]:
    """Without automatic mixed precision, in which the products of solvers lose the digits that decide."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def unchanged_buffers(module: nn.Module) -> Iterator[None]:
    """Give every buffer its values back: a network that counts its calls counts none of those in between.

    Args:
        module: Its buffers may be changed in place. Cost: a copy of them for the while.
    """
    kept = [(buffer, buffer.clone()) for buffer in module.buffers() if _is_plain(buffer)]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                if not torch.equal(buffer, value):  # a BatchNorm's kernel changes them without a new version
                    buffer.copy_(value)


def _is_plain(buffer: Tensor) -> bool:
    if type(buffer) not in (Tensor, nn.Buffer) or buffer.layout is not torch.strided:
        return False
    return not (buffer.is_meta or buffer.is_quantized or buffer.is_inference())


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode for a while; also those that refuse `eval()`."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def same_chance(inputs: ExampleInputs) -> Iterator[None]:
    """Draw the same random numbers each time, and leave those of the user alone."""
    tensors = [leaf for leaf in pytree.tree_leaves(call_arguments(inputs)) if isinstance(leaf, Tensor)]
    devices = sorted({tensor.device.index or 0 for tensor in tensors if tensor.is_cuda})
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        yield


@contextmanager
def plain_attention() -> Iterator[None]:
    """Compute attention as its modules write it.

    The fast path of `nn.TransformerEncoder` writes zeros at padded places, which no traced graph does.
    """
    kept = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(kept)


def copied(inputs: Any) -> Any:
    """The same nested structure with tensors of its own: an in-place ReLU may come first in a network."""
    return pytree.tree_map_only(Tensor, lambda value: value.detach().clone(), inputs)


def called(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a module gives; `gm(...)` would write its own account of an error to standard error."""
    return nn.Module.__call__(module, *args, **kwargs)


def outputs_of(module: nn.Module, inputs: ExampleInputs, *, fast_attention: bool = False) -> Any:
    """What a module gives for the inputs, run without gradients and without a trace."""
    args, kwargs = copied(call_arguments(inputs))
    attention = nullcontext() if fast_attention else plain_attention()
    with torch.no_grad(), unchanged_buffers(module), same_chance(inputs), attention:
        return called(module, args, kwargs)
