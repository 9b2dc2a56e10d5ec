"""The options of a provider that are quickest on this machine: tried once, kept, used for all networks.

One option after the other is tried on a small network, a dense layer and a chain like those that take its
place, in turn with the best so far, and is taken where it is quicker beyond the noise. What the caller sets
is not touched. Options that compute in a shorter type are not tried: how a network rounds is not for a
clock to decide.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from fxdecomp.latency.cache import LatencyCache, cache_folder
from fxdecomp.latency.chain_graphs import chain_graph
from fxdecomp.latency.differences import paired
from fxdecomp.latency.place import Place, Settings
from fxdecomp.layers import LayerSpec
from fxdecomp.policy.budgets import Latency

_CLEAR = 0.02
"""By what share of the time an option must be quicker, beside twice the error."""

_log = logging.getLogger(__name__)


def timed_at(budget: Latency) -> Settings:
    """Where a budget of time is measured, and with which options, as `benchmark` takes it."""
    return place_of(budget, LatencyCache(cache_folder())).settings


def place_of(budget: Latency, cache: LatencyCache) -> Place:
    """Where a budget of time is measured, with the options that are quickest there."""
    return with_quickest_options(Place(budget.provider, budget.threads, budget.options or {}), cache)


def with_quickest_options(place: Place, cache: LatencyCache) -> Place:
    """A place with the options that are quickest there, beside those that it has."""
    swept = {key: v for key, v in place.description.swept.items() if key not in place.options}
    if not swept:
        return place
    key = place.key() | {"swept": {name: list(values) for name, values in swept.items()}}
    found = cache.options(key)
    if found is None:
        found = _swept(place, swept)
        cache.put_options(key, found)
    return replace(place, options={**place.options, **found})


def _swept(place: Place, values: dict[str, tuple[str, ...]]) -> dict[str, str]:
    network = chain_graph(_specs(*place.description.trial))
    taken: dict[str, str] = {}
    best = place.run_of(network)
    for option, value in ((name, value) for name in values for value in values[name]):
        try:
            trial = replace(place, options={**place.options, **taken, option: value}).run_of(network)
            now = trial()
            gain, error = paired(best, trial)
        except Exception as refusal:  # noqa: BLE001 - whatever onnxruntime raises, this option is not for it
            _log.info("%s does not run with %s=%s: %s", place.provider, option, value, refusal)
            continue
        if gain > 2 * error + _CLEAR * now:
            best = trial
            taken[option] = value
    return taken


def _specs(channels: int, size: int) -> tuple[LayerSpec, ...]:
    half = channels // 2
    dense = LayerSpec(channels, channels, (3, 3), padding=((1, 1), (1, 1)), input_size=(size, size))
    return (
        dense,
        LayerSpec(channels, half, (1, 1), input_size=(size, size)),
        replace(dense, in_channels=half, out_channels=half),
        LayerSpec(half, channels, (1, 1), input_size=(size, size)),
    )
