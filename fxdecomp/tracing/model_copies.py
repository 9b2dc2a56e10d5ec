"""Copies of networks to run and to trace, which share the tensors of the original and leave it as it is."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fxdecomp.errors import TraceError, first_line


def eval_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode that shares the tensors, so that the model keeps its mode and costs no memory.

    It shares as well what Python cannot copy, such as a lock or an imported module in an attribute.

    Raises:
        TraceError: A parameter has no shape yet, or the model cannot be copied; says which and why.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise TraceError(f'"{name}" is lazy and has no shape yet; run the model once on an example first')
    shared: dict[int, Any] = {id(tensor): tensor for tensor in _tensors(model)}
    try:
        return copy.deepcopy(model, dict(shared)).eval()
    except Exception:  # noqa: BLE001 - a model's own attributes may raise anything
        shared |= {id(value): value for value in _uncopyable(model, shared)}
    try:
        return copy.deepcopy(model, dict(shared)).eval()
    except Exception as error:
        raise TraceError(
            f"{type(model).__name__} cannot be copied: {first_line(error)}; take what cannot be copied out "
            "of its attributes, or give them a __deepcopy__"
        ) from error


def _attributes(model: nn.Module) -> Iterator[Any]:
    """What the modules hold, looked for in lists and dicts too."""
    for part in model.modules():
        yield from pytree.tree_leaves(vars(part))


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers, and kept activations, which torch refuses to copy."""
    yield from model.parameters()
    yield from model.buffers()
    yield from (value for value in _attributes(model) if isinstance(value, Tensor) and not value.is_leaf)


def _uncopyable(model: nn.Module, shared: Mapping[int, object]) -> Iterator[Any]:
    """The attributes that are neither tensors nor modules and that cannot be copied."""
    known = dict(shared) | {id(part): part for part in model.modules()}  # a bound method copies its module
    for value in _attributes(model):
        if isinstance(value, Tensor | nn.Module):
            continue
        try:
            copy.deepcopy(value, dict(known))
        except Exception:  # noqa: BLE001 - a model's own attributes may raise anything
            yield value
