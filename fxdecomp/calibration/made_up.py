"""Inputs that are made up where the user gives none, so that budgets know more than the weights alone tell.

They are drawn like the example inputs of `trace`: pictures and signals with the spectrum of such, whole
numbers from the rows of the table that they are looked up in. Where the network's BatchNorms have stored what
they saw in training, the inputs are then moved until they show the same (`stored_statistics`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F  # noqa: N812

from fxdecomp.calibration.batches import Batch, Calibration
from fxdecomp.calibration.distance import named_outputs
from fxdecomp.calibration.stored_statistics import matched
from fxdecomp.errors import CalibrationError, FxdecompError, first_line
from fxdecomp.graphs.drawing import natural_like
from fxdecomp.graphs.inputs import has_batch, placeholder_values
from fxdecomp.graphs.records import examples_of
from fxdecomp.sites import survey
from fxdecomp.sites.constants import Constants

_NUMBERS = 1 << 21
"""So many numbers are made up in all,"""

_MACS = 2_000_000_000
"""which the network takes so many multiply-accumulates for,"""

_FEWEST, _MOST = 16, 256
"""in so many inputs, at least and at most: a layer that sees one row an input wants many."""

_BATCH_NUMBERS = 1 << 18
"""So many numbers make a batch, where the network takes other batches than that of the example,"""

_LEAST_BATCH, _MOST_BATCH = 8, 64
"""of so many inputs, at least and at most."""

_LEAST_ROWS = 17
"""A table of fewer rows holds kinds, such as those of segments, of which the example has the right ones."""


def made_up(
    gm: GraphModule, *, like: Batch | None = None, count: int | None = None, seed: int = 0
) -> Calibration:
    """Inputs for a network of which nobody has any; real ones are better.

    Args:
        gm: A traced network.
        like: Inputs that tell shapes, means, spreads and ranges; those of `trace` by default.
        count: Number of inputs; None for 16 to 256, the more the smaller they and the network are.
        seed: Of the draw.

    Raises:
        CalibrationError: The example inputs are not known, or the network does not run on inputs like them.

    Example:
        >>> import torch, fxdecomp
        >>> gm = fxdecomp.trace(torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3)), torch.rand(1, 3, 32, 32))
        >>> data = fxdecomp.calibration.made_up(gm)
        >>> len(data.batches), data.batches[0].shape
        (4, torch.Size([64, 3, 32, 32]))
    """
    examples = examples_of(gm) if like is None else like
    if examples is None:
        raise CalibrationError("the graph does not know its example inputs; make it with fxdecomp.trace")
    draw = _Draw(gm, examples, count, seed)
    problem = "its outputs are not finite"
    for size in dict.fromkeys((draw.batch, draw.rows)):
        batches = draw.batches(size)
        try:
            finite = all(bool(leaf.isfinite().all()) for leaf in named_outputs(gm, batches[0]).values())
        except Exception as error:  # noqa: BLE001 - a network's own code runs here and may raise anything
            problem = first_line(error)
            continue
        if finite:
            return Calibration(matched(gm, batches), seed=seed, made_up=True)
    raise CalibrationError(f"the network does not run on made-up inputs: {problem}; give calibration")


class _Draw:
    """How the inputs of one network are drawn."""

    def __init__(self, gm: GraphModule, examples: Batch, count: int | None, seed: int) -> None:
        self._leaves, self._structure = pytree.tree_flatten(examples)
        self._tables = _tables(gm, examples)
        self._seed = seed
        self._batched = has_batch(self._leaves)
        rows = [leaf for leaf, batched in zip(self._leaves, self._batched, strict=True) if batched]
        self.rows = max(rows[0].shape[0], 1) if rows else 1
        size = sum(leaf[0].numel() for leaf in rows)
        cost = sum(site.macs for site in survey(gm).sites) / self.rows
        bearable = min(_NUMBERS // max(size, 1), int(_MACS / max(cost, 1)))
        self.count = count or min(max(bearable, _FEWEST), _MOST)
        self.batch = min(max(_BATCH_NUMBERS // max(size, 1), _LEAST_BATCH), _MOST_BATCH, self.count)

    def batches(self, size: int) -> list[Any]:
        """Batches of a size, one after another until there are enough inputs."""
        generator = torch.Generator().manual_seed(self._seed)
        number = -(-self.count // size)
        return [pytree.tree_unflatten(self._drawn(size, generator), self._structure) for _ in range(number)]

    def _drawn(self, size: int, generator: torch.Generator) -> list[Any]:
        """The leaves of a batch; what has no batch axis stays what it is."""
        leaves = zip(self._leaves, self._batched, strict=True)
        return [self._like(leaf, size, generator) if batched else leaf for leaf, batched in leaves]

    def _like(self, leaf: Tensor, size: int, generator: torch.Generator) -> Tensor:
        if leaf.is_complex():
            return leaf
        if leaf.is_floating_point():
            return natural_like(leaf, size, generator)
        shape = (size, *leaf.shape[1:])
        rows = self._tables.get(id(leaf), 0)
        if rows >= _LEAST_ROWS:
            return torch.randint(rows, shape, generator=generator).to(leaf.device, leaf.dtype)
        which = torch.randint(self.rows, (size,), generator=generator)
        return leaf[which.to(leaf.device)]


def _tables(gm: GraphModule, examples: Batch) -> Mapping[int, int]:
    """Rows of the table that an input is looked up in, by the identity of the example's tensor."""
    try:
        values = placeholder_values(gm, examples)
    except FxdecompError:
        return {}
    constants = Constants(gm)
    nodes = gm.graph.find_nodes(op="placeholder")
    return {id(v): _rows_behind(gm, node, constants) for node, v in zip(nodes, values, strict=True)}


def _rows_behind(gm: GraphModule, ids: Node, constants: Constants) -> int:
    """Rows of the smallest table that the values of a node are looked up in, 0 where there is none."""
    found = []
    for user in ids.users:
        table: Tensor | None = None
        module = gm.get_submodule(str(user.target)) if user.op == "call_module" else None
        if isinstance(module, nn.Embedding):
            table = module.weight
        elif user.target is F.embedding and user.args[0] is ids and len(user.args) > 1:
            known = constants.of(user.args[1])
            table = None if known is None else known.value
        elif user.target is torch.ops.aten.embedding.default and user.args[1] is ids:
            known = constants.of(user.args[0])
            table = None if known is None else known.value
        if table is not None:
            found.append(table.shape[0])
    return min(found, default=0)
