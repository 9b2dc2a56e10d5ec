"""Give a recurrent layer fewer states; see `fxdecomp.places.states` and `fxdecomp.fitting.states`.

before   x -> rnn (LSTM 256->256) -> linear (256->64)
after    x -> rnn (LSTM 256->192) -> linear (192->64)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxdecomp.calibration.moments import Moments
from fxdecomp.fitting.states import fewer_states
from fxdecomp.graphs.replacing import Replacer
from fxdecomp.outcomes import Narrowed
from fxdecomp.passes.exchanging import exchange, narrow_between, row_of
from fxdecomp.places.heads import HeadPlaces
from fxdecomp.places.states import States
from fxdecomp.sites.recurrent import state_weights, with_states


def narrow_states(
    gm: GraphModule,
    found: HeadPlaces,
    place: States,
    kept: int,
    *,
    moments: Mapping[str, Moments],
    rows: Mapping[str, Narrowed],
) -> dict[str, Narrowed]:
    """Leave some states of a layer, in place.

    Args:
        gm: The graph.
        found: Knows it.
        place: The states.
        kept: How many of a direction are left.
        moments: By name, of the states and of the reader's inputs; none of either to go by the weights alone.
        rows: What is said of layers so far.

    Returns:
        What is said of both layers now.

    Raises:
        ValueError: What stands between cannot be made narrower; a sentence. The graph is as it was.
    """
    layer, reader = place.layers
    path = str(layer.calls[0].node.target)
    module = gm.get_submodule(path)
    assert isinstance(module, nn.RNNBase)  # as recurrent sites are; narrows the type
    order = place.columns.argsort()
    known = [moments.get(each.name) for each in (place.seen, reader)]
    both = None
    if known[0] is not None and known[1] is not None:
        both = known[0], known[1].of(order)
    replacer, weights = Replacer(gm), state_weights(module)
    flat = reader.weight.flatten(1)[:, order.to(reader.weight.device)]
    fewer = fewer_states(weights, flat, both, kept)
    narrow_between(gm, found, place, kept)
    shifts = None if both is None else [each.shift for each in fewer.recurrent]
    new = with_states(module, fewer.kept, [each.weight for each in fewer.recurrent], shifts)
    lost = 1 - _power(new.parameters()) / _power(module.parameters())
    gm.set_submodule(path, new)
    node, ways = layer.calls[0].node, place.recurrence.directions
    node.meta.pop("val", None)
    sizes = {place.size: kept, ways * place.size: ways * kept}
    node.meta["tensor_meta"] = _recorded(node.meta.get("tensor_meta"), sizes)
    told = {}
    own = rows.get(layer.name) or row_of(layer)
    told[layer.name] = replace(own, outputs=kept, weight_error=max(lost, 0.0) ** 0.5, reason="")
    error = None if both is None else fewer.reader.error
    bias = reader.bias
    if both is not None:
        bias = fewer.reader.shift if bias is None else bias.double() + fewer.reader.shift
    # The inputs of the reader are in the order of the states now, and are put back into its own.
    ranks = place.inner(kept).left(place.columns).to(flat.device)
    weight = fewer.reader.weight[:, ranks]
    gone = 1 - _power([weight]) / _power([reader.weight])
    own = rows.get(reader.name) or row_of(reader)
    told[reader.name] = replace(
        own, inputs=len(ranks), weight_error=max(gone, 0.0) ** 0.5, output_error=error
    )
    shaped = weight.reshape(*weight.shape, *reader.weight.shape[2:])
    exchange(replacer, reader, replace(reader.spec, in_channels=len(ranks)), shaped, bias)
    return told


def _power(tensors: Iterable[Tensor]) -> float:
    """The squared norm of all numbers together."""
    return sum(float(each.detach().double().square().sum()) for each in tensors)


def _recorded(values: Any, sizes: Mapping[int, int]) -> Any:
    """What is recorded of a layer's values, their last axis of another length."""
    if hasattr(values, "shape"):
        last = sizes.get(values.shape[-1], values.shape[-1])
        return values._replace(shape=torch.Size((*values.shape[:-1], last)), stride=())
    is_several = isinstance(values, tuple | list)
    return type(values)(_recorded(each, sizes) for each in values) if is_several else values
