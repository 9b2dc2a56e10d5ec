"""The singular values that rank rules look at, layer by layer, and a picture with the ranks chosen."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.fx import GraphModule

from fxdecomp.decompositions import method_for, method_named, problems_of
from fxdecomp.errors import FxdecompError, PolicyError
from fxdecomp.passes import FoldBatchNorm
from fxdecomp.ranks import VBMF, Energy, RankRule, Ratio
from fxdecomp.reporting.plots import new_axes
from fxdecomp.sites import survey

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RULES: tuple[RankRule, ...] = (VBMF(), Energy(0.9), Ratio(0.5))
_COLUMNS = 3


@dataclass(frozen=True, slots=True)
class LayerSpectra:
    """What rank rules see of one layer.

    Attributes:
        site: Qualified name of the layer.
        layer: The layer in words.
        method: The method that its ranks are for.
        singular_values: Of each matrix that the method looks at, in descending order; of the first group.
        ranks: What each rule chooses, None where it finds nothing worth keeping.
    """

    site: str
    layer: str
    method: str
    singular_values: tuple[tuple[float, ...], ...]
    ranks: tuple[tuple[RankRule, tuple[int, ...] | None], ...]


def layer_spectra(
    gm: GraphModule, layers: str = "*", *, method: str = "tucker2", rules: Sequence[RankRule] = RULES
) -> tuple[LayerSpectra, ...]:
    """The spectra of the layers that a method suits, from the weights alone, BatchNorm folded.

    Args:
        gm: A traced network.
        layers: A glob over the layers' names.
        method: Name of a method.
        rules: The rank rules to ask.

    Raises:
        PolicyError: There is no such method, or it suits none of these layers.
    """
    chosen = method_named(method)
    found = []
    for site in survey(FoldBatchNorm()(gm)).sites:
        own = method_for(chosen, site.spec.per_group)
        if not fnmatch.fnmatchcase(site.name, layers) or own.refusal(site.spec.per_group) is not None:
            continue
        problems = problems_of(site.weight, site.spec)
        values = tuple(tuple(s.singular_values.tolist()) for s in own.spectra(problems[0]))
        ranks = tuple((rule, rule.choose(own, site.spec, problems)) for rule in rules)
        found.append(LayerSpectra(site.name, str(site.spec), own.name, values, ranks))
    if not found:
        raise PolicyError(f"{method} suits no layer that {layers!r} matches; see fxdecomp inspect")
    return tuple(found)


def plot_spectra(
    gm: GraphModule,
    layers: str = "*",
    *,
    method: str = "tucker2",
    rules: Sequence[RankRule] = RULES,
    axes: Axes | None = None,
) -> list[Axes]:
    """Draw the singular values of each mode, with the ranks that each rule would choose.

    One panel a layer; a curve for each matrix that the method looks at (`tucker2`: the output and the input
    unfolding), and on it a mark for each rule. Where a method has one rank for several curves (`cp`), the
    mark stands on all of them.

    Args:
        gm: A traced network.
        layers: A glob over the layers' names.
        method: Name of a method.
        rules: The rank rules to compare.
        axes: Where to draw a single layer; new figures by default.

    Returns:
        The panels.

    Raises:
        PolicyError: There is no such method, or it suits none of these layers.
        FxdecompError: matplotlib is not installed, or several layers were asked for on one axes.

    Example:
        >>> import torch, fxdecomp, matplotlib
        >>> matplotlib.use("agg")
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(16, 32, 3), torch.nn.ReLU())
        >>> panels = fxdecomp.plot_spectra(fxdecomp.trace(model, torch.randn(1, 16, 8, 8)))
        >>> panels[0].get_title()
        '0: Conv2d 16->32, 3x3'
    """
    found = layer_spectra(gm, layers, method=method, rules=rules)
    if axes is not None and len(found) > 1:
        raise FxdecompError(
            f"{len(found)} layers do not fit on one axes; name one, such as {found[0].site!r}"
        )
    panels = [axes] if axes is not None else _grid(len(found))
    for panel, spectra in zip(panels, found, strict=True):
        _draw(panel, spectra)
    return panels


def _grid(count: int) -> list[Axes]:
    columns = min(count, _COLUMNS)
    rows = math.ceil(count / columns)
    first = new_axes(None, (4.2 * columns, 3.2 * rows))
    figure = first.figure
    first.remove()
    return [figure.add_subplot(rows, columns, index + 1) for index in range(count)]


def _draw(panel: Axes, spectra: LayerSpectra) -> None:
    for mode, values in enumerate(spectra.singular_values):
        positive = [value for value in values if value > 0]
        panel.semilogy(range(1, len(positive) + 1), positive, color=f"C{mode}", label=f"mode {mode}")
    for mark, (rule, rank) in zip("osD^vP*X", spectra.ranks, strict=False):
        if rank is None:
            continue
        per_mode = rank if len(rank) == len(spectra.singular_values) else rank * len(spectra.singular_values)
        places = [
            (r, values[min(r, len(values)) - 1], mode)
            for mode, (r, values) in enumerate(zip(per_mode, spectra.singular_values, strict=True))
        ]
        panel.scatter(
            [r for r, _, _ in places],
            [value for _, value, _ in places],
            c=[f"C{mode}" for _, _, mode in places],
            marker=mark,
            label=f"{rule}: {'x'.join(map(str, rank))}",
        )
    panel.set_title(f"{spectra.site}: {spectra.layer}", fontsize="medium")
    panel.set_xlabel("rank")
    panel.set_ylabel("singular value")
    panel.legend(fontsize="small")
