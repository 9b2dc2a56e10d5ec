"""Where the outputs of a layer may become fewer: before what reads them, as heads of attention, as states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch.fx import GraphModule

from fxdecomp.layers import LayerSpec
from fxdecomp.places.coupling import Coupling, Couplings
from fxdecomp.places.heads import HeadPlaces, Heads
from fxdecomp.places.states import StatePlaces, States
from fxdecomp.sites import Site


class Narrowings:
    """Finds the places of one graph.

    Attributes:
        heads: Knows the graph's heads.
    """

    def __init__(self, gm: GraphModule, sites: Sequence[Site]) -> None:
        self._couplings, self.heads = Couplings(gm, sites), HeadPlaces(gm, sites)
        self._states = StatePlaces(self.heads)

    def of(self, producer: Site) -> Coupling | Heads | States | str:
        """What shares the axis of a layer's outputs, or why they stay as they are."""
        if producer.spec.recurrence is not None:
            return self._states.of(producer)
        coupling = self._couplings.of(producer)
        return self.heads.of(producer) or coupling if isinstance(coupling, str) else coupling


def fitted_layers(place: Coupling | Heads | States) -> tuple[Site, ...]:
    """The layers whose inputs have to be known where a place is to be fitted."""
    if isinstance(place, States):
        return place.seen, place.reader
    return place.layers if isinstance(place, Heads) else place.readers


def narrower(place: Coupling | Heads, site: Site, spec: LayerSpec, width: int) -> LayerSpec:
    """The geometry of a layer of a place at one of its calls, where the place's first layer has a width.

    Args:
        place: The place.
        site: One of its layers.
        spec: Its geometry as it is.
        width: Outputs of the first producer.
    """
    share = width / place.producers[0].spec.out_channels
    fewer_in, fewer_out = round(share * spec.in_channels), round(share * spec.out_channels)
    if isinstance(place, Coupling) and site in place.carriers:
        return replace(spec, in_channels=fewer_in, out_channels=fewer_out, groups=fewer_in)
    if site in (place.readers if isinstance(place, Coupling) else (place.reader,)):
        return replace(spec, in_channels=fewer_in)
    return replace(spec, out_channels=fewer_out)
