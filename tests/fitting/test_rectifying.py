import pytest
import torch

from fxdecomp.chains import Chain
from fxdecomp.decompositions import method_named
from fxdecomp.fitting.rectifying import Samples, rectify, to_auxiliary
from fxdecomp.fitting.refitting import matrix_of
from fxdecomp.layers import LayerSpec


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def truncated(layer: torch.Tensor, rank: int, bias: torch.Tensor) -> Chain:
    left, values, right = torch.linalg.svd(layer, full_matrices=False)
    form = method_named("svd").form(LayerSpec(layer.shape[1], layer.shape[0]), (rank,))
    return Chain(form, (right[:rank], left[:, :rank] * values[:rank]), bias.double())


def cost(chain: Chain, samples: Samples) -> float:
    got = torch.cat(list(samples.inputs)).double() @ matrix_of(chain).T + chain.bias
    return float((samples.outputs.relu() - got.relu()).square().sum(1).mean())


def samples(layer: torch.Tensor, bias: torch.Tensor, count: int, seed: int) -> Samples:
    z = normal(count, layer.shape[1], seed=seed)
    return Samples(torch.split(z, 300), z @ layer.T + bias)


def test_what_the_relu_hides_is_given_up_for_what_it_shows():
    layer, bias = normal(12, 8, seed=0), torch.full((12,), -1.5)
    chain = truncated(layer, 4, bias)
    others = samples(layer, bias, 2000, seed=3)
    found = rectify(samples(layer, bias, 2000, seed=1), samples(layer, bias, 500, seed=2), chain)
    assert found.weights[0] is chain.weights[0]
    assert cost(found, others) < 0.96 * cost(chain, others)


def test_where_nothing_is_negative_the_optimum_stays():
    layer, bias = normal(12, 8, seed=0), torch.full((12,), 100.0)
    chain = truncated(layer, 4, bias)
    assert rectify(samples(layer, bias, 20_000, seed=1), samples(layer, bias, 500, seed=2), chain) is chain


def test_noise_that_does_not_generalise_changes_nothing():
    layer, bias = normal(12, 30, seed=0), torch.zeros(12)
    chain = truncated(layer, 12, bias)
    few = samples(layer, bias, 16, seed=1)
    noisy = Samples(few.inputs, few.outputs + 5 * normal(16, 12, seed=4))
    assert rectify(noisy, samples(layer, bias, 500, seed=2), chain) is chain


@pytest.mark.parametrize("rank", [8, 12])
def test_a_full_rank_chain_has_nothing_to_gain(rank):
    layer, bias = normal(12, 8, seed=0), torch.zeros(12)
    chain = truncated(layer, min(rank, 8), bias)
    found = rectify(samples(layer, bias, 500, seed=1), samples(layer, bias, 500, seed=2), chain)
    assert cost(found, samples(layer, bias, 500, seed=3)) < 1e-9


@pytest.mark.parametrize("penalty", [0.01, 0.1, 1.0, 30.0])
def test_the_auxiliary_response_is_the_best_of_all_numbers(penalty):
    x, w = torch.meshgrid(torch.linspace(-4, 4, 41), torch.linspace(0, 4, 21), indexing="ij")
    grid = torch.linspace(-5, 5, 2001)[:, None, None]

    def cost(a):
        return (w - a.relu()).square() + penalty * (a - x).square()

    least = cost(x + to_auxiliary(x.clone(), w, penalty))
    assert bool((least <= cost(grid).amin(0) + 1e-5).all())
