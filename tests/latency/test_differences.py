from collections.abc import Callable

import numpy as np
import pytest

from fxdecomp.latency.chain_graphs import Network
from fxdecomp.latency.differences import difference, paired
from fxdecomp.latency.place import Place
from fxdecomp.layers import LayerSpec

pytest.importorskip("onnxruntime")

CHAIN = (
    LayerSpec(16, 8, (1, 1), input_size=(8, 8)),
    LayerSpec(8, 16, (3, 3), padding=((1, 1), (1, 1)), input_size=(8, 8)),
)


def test_two_runs_in_turn_give_their_difference_and_its_error() -> None:
    draw = np.random.default_rng(0)
    errors = []
    for _ in range(200):
        drift = iter(np.repeat(draw.uniform(1, 10, 40), 2))
        found, error = paired(lambda: 3 + next(drift) + draw.normal(0, 0.1), lambda: next(drift))  # noqa: B023
        errors.append((found - 3) / error)
    assert np.std(errors) == pytest.approx(1, abs=0.35)


class Noisy:
    """A place where a run takes 100 ms, a layer of the chain 0.1 ms and a neighbour 10 ms."""

    def __init__(self, noise_s: float) -> None:
        self.draw, self.noise_s = np.random.default_rng(0), noise_s
        self.copies: list[int] = []

    def run_of(self, network: Network) -> Callable[[], float]:
        names = [node.name for node in network.model.graph.node]
        stages = sum("stage" in name for name in names)
        self.copies.append(len(network.inputs))
        return lambda: 0.1 + 1e-4 * stages + 1e-2 * (len(names) - stages) + self.draw.normal(0, self.noise_s)


@pytest.mark.parametrize(("noise_s", "most"), [(1e-6, 2), (1e-3, 8)])
def test_what_a_run_costs_besides_its_layers_cancels_and_small_chains_stand_side_by_side(
    noise_s: float, most: int
) -> None:
    place = Noisy(noise_s)
    found = difference(place, CHAIN)  # type: ignore[arg-type]
    assert max(place.copies) == most
    assert found.time_s == pytest.approx(2e-4, abs=4 * found.error_s + 1e-5)
    assert found.error_s <= max(noise_s / 10, 1e-6)


def test_a_difference_is_had_on_a_real_provider() -> None:
    found = difference(Place(), CHAIN)
    assert 0 < found.time_s < 1
    assert 0 <= found.error_s < 1
