"""The states of a recurrent layer and the one layer that reads them, so that there may be fewer.

    x -> rnn -> h [..., directions * hidden] -> linear

The next step reads them as well, and so does each state itself, but no other sees a state that is gone. Where
anything else reads them, a sentence says so.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from fxdecomp.errors import first_line
from fxdecomp.layers import LayerSpec, Recurrence
from fxdecomp.places.attention import Met, Way
from fxdecomp.places.heads import HeadPlaces
from fxdecomp.places.moving import Inner
from fxdecomp.sites import Call, Site
from fxdecomp.sites.base import shape_of


@dataclass(frozen=True, slots=True, eq=False)
class States:
    """A recurrent layer and what reads it. Its outputs have numbers, those of each direction in a row.

    Attributes:
        layer: The recurrent layer, of one level.
        reader: The layer that reads its outputs.
        columns: The outputs that are the reader's inputs, `[directions * hidden]`.
        met: What lies between.
    """

    layer: Site
    reader: Site
    columns: Tensor
    met: Met

    @property
    def layers(self) -> tuple[Site, ...]:
        """Both."""
        return self.layer, self.reader

    @property
    def size(self) -> int:
        """States of a direction."""
        return self.recurrence.hidden

    @property
    def recurrence(self) -> Recurrence:
        """What the layer is besides the product with its input."""
        assert self.layer.spec.recurrence is not None  # made so by `StatePlaces`; narrows the type
        return self.layer.spec.recurrence

    @property
    def seen(self) -> Site:
        """The states at all steps, as the input of a layer whose moments can be taken."""
        (source, *_) = self.starts(self.size)
        user = next(iter(source.users))
        count = self.recurrence.directions * self.size
        order = Recurrence("RNN", 1, batch_first=self.recurrence.batch_first, steps=self.recurrence.steps)
        spec = LayerSpec(count, 1, positions=self.layer.spec.positions, recurrence=order)
        call = Call(user, user.all_input_nodes.index(source), spec)
        weight = self.reader.weight.new_empty(1, count)
        return Site(f"states of {self.layer.name}", (call,), weight, None, 0, trains=False, bias_trains=False)

    def inner(self, kept: int) -> Inner:
        """The states of a direction, of which some are left."""
        return Inner(self.size, 1, kept)

    def starts(self, kept: int) -> dict[Node, Tensor]:
        """The outputs with so many states a direction, as their numbers."""
        return _numbered(self.layer, kept)


class StatePlaces:
    """Finds states in one graph. Cost: for each layer, the nodes between, run on numbers of states."""

    def __init__(self, known: HeadPlaces) -> None:
        """Begin.

        Args:
            known: Knows the graph.
        """
        self._known = known

    def of(self, layer: Site) -> States | str:
        """The states of a recurrent layer, or why they stay as they are."""
        recurrence, known = layer.spec.recurrence, self._known
        assert recurrence is not None  # asked of recurrent layers only
        if obstacle := _obstacle(layer, recurrence):
            return obstacle
        starts = _numbered(layer, recurrence.hidden)
        if not starts:
            return "no layer reads them"
        way = Way(known.gm, known.sites, known.moves)
        try:
            found = way.follow(starts)
        except Exception as error:  # noqa: BLE001 - whatever torch raises on numbers that do not fit
            return f"their way to a layer cannot be followed ({first_line(error)})"
        if isinstance(found, Site):
            return f"they are multiplied with what {found.name} gives"
        return found or self._states(layer, way.met)

    def _states(self, layer: Site, met: Met) -> States | str:
        if met.products or met.mixed or met.factors:
            return "they are multiplied before a layer reads them"
        if len(met.readers) != 1:
            names = " and ".join(self._known.sites[node].name for node in met.readers)
            return f"{names} both read them" if names else "no layer reads them"
        ((node, columns),) = met.readers.items()
        count = max(int(numbers.max()) for numbers in _starting(layer, met)) + 1
        if not torch.equal(columns.sort().values, torch.arange(count)):
            return f"{self._known.sites[node].name} does not read all of them, each once"
        return States(layer, self._known.sites[node], columns, met)


def _starting(layer: Site, met: Met) -> list[Tensor]:
    return [met.values[node] for node in layer.calls[0].node.users if node in met.values]


def _numbered(layer: Site, kept: int) -> dict[Node, Tensor]:
    """The nodes that give a layer's outputs, every element the number of its state."""
    node, recurrence = layer.calls[0].node, layer.spec.recurrence
    assert recurrence is not None  # asked of recurrent layers only
    found = {}
    for user in node.users:
        shape = shape_of(user)
        if user.target is operator.getitem and user.args[1] == 0 and user.users and shape is not None:
            numbers = torch.arange(recurrence.directions * kept)
            found[user] = numbers.expand(*shape[:-1], len(numbers))
    return found


def _obstacle(layer: Site, recurrence: Recurrence) -> str:
    """Why the states of a layer stay, whatever reads them."""
    node = layer.calls[0].node
    found = ""
    if len(layer.calls) > 1:
        found = f"{layer.name} is applied at {len(layer.calls)} places"
    elif recurrence.levels > 1:
        found = (
            f"{layer.name} has {recurrence.levels} layers on top of each other, of which the next reads them"
        )
    elif recurrence.projected:
        found = f"{layer.name} projects them"
    elif len(node.all_input_nodes) > 1:
        found = f"{layer.name} is given states to begin with"
    elif any(_is_read(user) for user in node.users if not _is_first(user)):
        found = f"the last states of {layer.name} are read by themselves"
    return found


def _is_first(node: Node) -> bool:
    """Whether a node takes the outputs of all steps."""
    return node.target is operator.getitem and bool(node.args[1] == 0)


def _is_read(node: Node) -> bool:
    """Whether anything comes of a node."""
    return node.op == "output" or any(map(_is_read, node.users))
