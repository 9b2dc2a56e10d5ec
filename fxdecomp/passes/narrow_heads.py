"""Give the heads of attention fewer channels; see `fxdecomp.places.heads` and `fxdecomp.places.head_fits`.

    before   x -> q (Linear 64->64), heads of 16 -> q k^T / 4 -> softmax
    after    x -> q (Linear 64->32), heads of 8  -> q k^T / 4 -> softmax

What is scaled by stays, so that softmax sees scores of the same size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor
from torch.fx import GraphModule

from fxdecomp.graphs.replacing import Replacer
from fxdecomp.outcomes import Narrowed
from fxdecomp.passes.exchanging import exchange, narrow_between, row_of
from fxdecomp.places.attention import operands_of
from fxdecomp.places.contractions import ATTENTION
from fxdecomp.places.head_edits import edits_of
from fxdecomp.places.head_fits import HeadFit
from fxdecomp.places.heads import HeadPlaces
from fxdecomp.places.operations import operation_of


def narrow_heads(
    gm: GraphModule, found: HeadPlaces, fit: HeadFit, kept: int, rows: Mapping[str, Narrowed]
) -> dict[str, Narrowed]:
    """Narrow the heads of some layers, in place.

    Args:
        gm: The graph.
        found: Knows it.
        fit: What is known of the heads.
        kept: Channels of a head that are left.
        rows: What is said of layers so far.

    Returns:
        What is said of these layers now.

    Raises:
        ValueError: What stands between cannot be made narrower; a sentence. The graph is as it was.
    """
    heads = fit.heads
    edits_of(found, heads, kept)
    weights, replacer = fit.outputs(kept), Replacer(gm)
    narrow_between(gm, found, heads, kept)
    for node in heads.met.products:
        if operation_of(gm, node) == ATTENTION and operands_of(node).get("scale") is None:
            node.kwargs = {**node.kwargs, "scale": heads.size**-0.5}
    return _exchanged(replacer, fit, kept, weights, rows)


def _exchanged(
    replacer: Replacer,
    fit: HeadFit,
    kept: int,
    weights: Mapping[str, tuple[Tensor, Tensor | None]],
    rows: Mapping[str, Narrowed],
) -> dict[str, Narrowed]:
    """Put narrower layers in the places of the producers and of the reader."""
    heads, found, paired = fit.heads, {}, fit.pair_error(kept)
    reading = None if heads.reader is None else fit.reading(kept)
    lost = max(paired**0.5, 0.0 if reading is None else reading.weight_error)
    for site in heads.producers:
        weight, bias = weights[site.name]
        own = rows.get(site.name) or row_of(site)
        error = paired if fit.is_fitted and heads.pairings else None
        found[site.name] = replace(own, outputs=len(weight), weight_error=lost, output_error=error, reason="")
        exchange(replacer, site, replace(site.spec, out_channels=len(weight)), weight, bias)
    if heads.reader is not None and reading is not None:
        site = heads.reader
        whole = site.weight.double().flatten(1)
        guess, kept_rows, mean = (
            each.to(whole.device) for each in (reading.guess, reading.kept, reading.mean)
        )
        weight = whole @ guess
        bias = site.bias
        if fit.is_fitted:
            shift = (whole - weight @ kept_rows) @ mean
            bias = shift if bias is None else bias.double() + shift
        own = rows.get(site.name) or row_of(site)
        error = reading.error if fit.is_fitted else None
        inputs = weight.shape[1]
        found[site.name] = replace(own, inputs=inputs, weight_error=reading.weight_error, output_error=error)
        shaped = weight.reshape(*weight.shape, *site.weight.shape[2:])
        exchange(replacer, site, replace(site.spec, in_channels=inputs), shaped, bias)
    return found
