"""`small.pt2`: the compressed network as a program of `torch.export`."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule

from fxdecomp.export.examples import with_batch
from fxdecomp.graphs.inputs import has_batch
from fxdecomp.graphs.untouched import one_at_a_time

_log = logging.getLogger(__name__)


@one_at_a_time
@torch.no_grad()
def program_of(
    gm: GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any], *, free_batch: bool
) -> ExportedProgram:
    """The network as a program that carries its example, for any batch where `torch.export` can free it."""
    leaves, structure = pytree.tree_flatten((args, kwargs))
    if free_batch and all(isinstance(leaf, Tensor) for leaf in leaves):
        batched = has_batch(leaves)
        batch = next(leaf.shape[0] for leaf, free in zip(leaves, batched, strict=True) if free)
        rows = with_batch(leaves, max(2, batch))  # torch.export takes a length of 1 for a constant
        shapes: Any = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
        for value, free in zip(rows, batched, strict=True):
            shapes[value] = {0: torch.export.Dim.AUTO} if free else {}
        values = pytree.tree_unflatten(rows, structure)
        try:
            program = _exported(gm, *values, dynamic_shapes=shapes)
        except Exception as error:  # noqa: BLE001 - whatever the exporter raises, the batch can be fixed
            _log.info("small.pt2 takes the example's batch alone: %s", error)
        else:
            program.example_inputs = (args, kwargs)
            return program
    return _exported(gm, args, kwargs)


def _exported(gm: GraphModule, *values: Any, **options: Any) -> ExportedProgram:
    with warnings.catch_warnings():  # recurrent layers of torch keep their weights in a list, too
        warnings.filterwarnings("ignore", r"(?s)The tensor attributes .*_flat_weights", UserWarning)
        return torch.export.export(gm, *values, **options)


def save(program: ExportedProgram, file: Any) -> None:
    """Write a program; a tensor that is a part of a larger one is written with it, and read as it was.

    Args:
        program: The program.
        file: A path, or a file that is open for writing.
    """
    with warnings.catch_warnings():  # torch's windows for sound are such parts
        warnings.filterwarnings("ignore", "No complete tensor found", UserWarning)
        torch.export.save(program, file)
