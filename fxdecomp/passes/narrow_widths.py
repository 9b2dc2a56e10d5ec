"""Take away outputs of a layer that the layer reading them misses least.

    before   x -> fc1 (Linear 64->256) -> gelu -> fc2 (Linear 256->64) -> y
    after    x -> fc1 (Linear 64->128) -> gelu -> fc2 (Linear 128->64) -> y

The reader is fitted to what it gave, by least squares on the calibrated moments of its input; of the weights
alone, each channel counts as much as the weights that make it, and nothing makes up for another. Both layers
keep their names and places.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch.fx import GraphModule

from fxdecomp.calibration import Calibration
from fxdecomp.calibration.collecting import collect
from fxdecomp.calibration.moments import Moments
from fxdecomp.fitting.removal import fitted_to, remove_channels
from fxdecomp.graphs.records import Record
from fxdecomp.graphs.replacing import Replacer, remove_unused
from fxdecomp.outcomes import Applied, Narrowed
from fxdecomp.passes.base import Pass
from fxdecomp.passes.exchanging import exchange, record_size, row_of
from fxdecomp.passes.narrow_heads import narrow_heads
from fxdecomp.passes.narrow_states import narrow_states
from fxdecomp.places.coupling import Coupling
from fxdecomp.places.head_fits import HeadFit
from fxdecomp.places.heads import Heads
from fxdecomp.places.narrowing import Narrowings, fitted_layers
from fxdecomp.places.operations import narrow
from fxdecomp.places.states import States
from fxdecomp.policy import Policy
from fxdecomp.progress import Progress, silent
from fxdecomp.sites import Site, survey


@final
@dataclass(frozen=True, slots=True)
class NarrowWidths(Pass):
    """Narrows the outputs of the layers for which a policy has a width.

    Attributes:
        policy: Says which layers, and how much of their outputs stays.
        calibration: Inputs, None to go by the weights alone.
        progress: Told of every layer.
    """

    name: ClassVar[str] = "narrow_widths"
    policy: Policy
    calibration: Calibration | None = None
    progress: Progress = silent

    @torch.no_grad()
    def call(self, gm: GraphModule, record: Record) -> Record:
        """Narrow every layer that has a width and whose readers can be followed.

        Raises:
            PolicyError: Rules give a layer different widths.
        """
        rows = {row.site: row for row in record.widths}
        stages = frozenset(s for o in record.outcomes if isinstance(o, Applied) for s in o.stage_names)
        found = _sites(gm, stages)
        done = {name for name, row in rows.items() if row.outputs is not None}
        widths = {site.name: self.policy.width_of(site.name) for site in found if site.name not in done}
        wanted = {name: width for name, width in widths.items() if isinstance(width, int | float)}
        known = Narrowings(gm, found)
        places = {site.name: known.of(site) for site in found if site.name in wanted}
        fitted = {s.name: s for p in places.values() if not isinstance(p, str) for s in fitted_layers(p)}
        moments = self._moments(gm, list(fitted.values()))
        for number, name in enumerate(places):
            if name not in done:  # together with another
                sites = _sites(gm, stages)
                rows |= self._narrowed(gm, sites, name, wanted[name], moments=moments, rows=rows)
                done = {each for each, row in rows.items() if row.outputs is not None}
            self.progress("narrow", number + 1, len(places))
        remove_unused(gm)
        return replace(record, widths=tuple(rows.values()))

    def _moments(self, gm: GraphModule, readers: list[Site]) -> dict[str, Moments]:
        """The moments of the readers' inputs, of those that have room, in the order of the graph."""
        known: dict[str, Moments] = {}
        if self.calibration is not None:
            fitted = [
                site for site in readers if self.calibration.can_fit(site.spec) and site.spec.groups == 1
            ]
            order = {node: number for number, node in enumerate(gm.graph.nodes)}
            fitted.sort(key=lambda site: order[site.calls[0].node])
            for found in collect(gm, fitted, self.calibration) if fitted else ():
                known |= {name: parts[0] for name, parts in found.items()}
        return known

    def _narrowed(
        self,
        gm: GraphModule,
        sites: list[Site],
        name: str,
        width: float,
        *,
        moments: Mapping[str, Moments],
        rows: Mapping[str, Narrowed],
    ) -> dict[str, Narrowed]:
        """Narrow one place as the graph is now; the rows of its layers."""
        site = next(site for site in sites if site.name == name)
        before = rows.get(name) or row_of(site)
        found = Narrowings(gm, sites)
        place, channels = found.of(site), site.spec.out_channels
        if isinstance(place, States):
            channels = place.size
        if isinstance(place, str):
            return {name: replace(before, reason=before.reason or place)}  # of an earlier run, in its names
        fits = {s.name: moments[s.name] for s in fitted_layers(place) if _is_of(moments.get(s.name), s)}
        step = channels // place.size if isinstance(place, Heads) else 1
        keep = fewer(channels, width, math.lcm(step, self.policy.multiple_of or 1))
        if keep == channels:
            return {name: replace(before, reason=f"all {channels} of them stay")}
        try:
            if isinstance(place, Heads):
                return narrow_heads(gm, found.heads, HeadFit(place, fits), keep // step, rows)
            if isinstance(place, States):
                return narrow_states(gm, found.heads, place, keep, moments=fits, rows=rows)
        except ValueError as error:
            return {name: replace(before, reason=str(error))}
        return _apply(gm, place, keep, fits, rows)


def _sites(gm: GraphModule, stages: Container[str]) -> list[Site]:
    """The layers of a graph as it is now, but for what an earlier run made of some."""
    return [site for site in survey(gm).sites if site.name not in stages]


def _is_of(known: Moments | None, site: Site) -> bool:
    """Whether moments are those of a layer's inputs, as it is now."""
    return known is not None and known.mean.numel() == math.prod(site.weight.shape[1:])


def fewer(channels: int, width: float, step: int) -> int:
    """The outputs that are to be left of a layer's: a share or a number, as a multiple."""
    keep = width if isinstance(width, int) else max(1, round(width * channels))
    return min(channels, max(1, math.ceil(keep / step)) * step)


def _assumed(place: Coupling) -> Moments:
    """What the weights say of the reader's inputs: each varies as the weights that make it."""
    taps = math.prod(place.consumer.spec.kernel)
    squares = [site.weight.double().flatten(1).square().sum(1).cpu() for site in place.producers]
    size = torch.stack(squares).prod(0) if place.is_product else torch.stack(squares).sum(0)
    for site in place.carriers:
        size = size * site.weight.double().flatten(1).square().sum(1).cpu()
    return Moments.apart(size.repeat_interleave(taps))


def _alike(site: Site) -> Moments:
    """Of a layer's inputs, of which nothing is known: they are all alike."""
    return Moments.apart(torch.ones(math.prod(site.weight.shape[1:]), dtype=torch.float64))


def _apply(
    gm: GraphModule, place: Coupling, keep: int, fits: Mapping[str, Moments], rows: Mapping[str, Narrowed]
) -> dict[str, Narrowed]:
    replacer, reader = Replacer(gm), place.consumer
    removal = remove_channels(reader.weight, fits.get(reader.name) or _assumed(place), keep)
    kept = removal.kept
    found: dict[str, Narrowed] = {}
    for site in (*place.producers, *place.excitations):
        lost = 1 - float(site.weight[kept].double().square().sum() / site.weight.double().square().sum())
        own = replace(rows.get(site.name) or row_of(site), outputs=keep, weight_error=max(lost, 0.0) ** 0.5)
        found[site.name] = replace(own, reason="")
        spec = replace(site.spec, out_channels=keep)
        exchange(replacer, site, spec, site.weight[kept], None if site.bias is None else site.bias[kept])
    for site in place.carriers:
        found[site.name] = replace(rows.get(site.name) or row_of(site), inputs=keep)
        spec = replace(site.spec, in_channels=keep, out_channels=keep, groups=keep)
        exchange(replacer, site, spec, site.weight[kept], None if site.bias is None else site.bias[kept])
    for site in place.readers:
        seen = fits.get(site.name)
        removal = removal if site is reader else fitted_to(site.weight, seen or _alike(site), kept)
        whole = torch.zeros_like(site.weight, dtype=torch.float64)
        whole[:, kept] = removal.weight.to(whole.device)
        gone = float((site.weight.double() - whole).square().sum() / site.weight.double().square().sum())
        row = replace(rows.get(site.name) or row_of(site), inputs=keep, weight_error=gone**0.5)
        found[site.name] = replace(row, output_error=None if seen is None else removal.error)
        bias = site.bias
        if seen is not None:
            bias = removal.shift if bias is None else bias.double() + removal.shift
        exchange(replacer, site, replace(site.spec, in_channels=keep), removal.weight, bias)
    for node, axis in place.axes.items():
        if not node._erased:
            narrow(gm, node, axis, keep)
            record_size(node, axis, keep)
    return found
