import pytest
import torch

from fxdecomp.calibration.moments import Moments, MomentsSum
from fxdecomp.chains import Chain
from fxdecomp.decompositions import method_named
from fxdecomp.fitting.refitting import JointMoments, error_over, matrix_of, refit, variance_over
from fxdecomp.layers import LayerSpec


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(rows: torch.Tensor) -> Moments:
    total = MomentsSum()
    total.add(rows)
    return total.moments()


def joint(z: torch.Tensor, y: torch.Tensor) -> JointMoments:
    return JointMoments.of(moments(torch.cat((z, y), dim=1)), z.shape[1])


def linear_chain(layer: torch.Tensor, rank: int, weights: tuple[torch.Tensor, ...]) -> Chain:
    spec = LayerSpec(layer.shape[1], layer.shape[0])
    return Chain(method_named("svd").form(spec, (rank,)), weights, layer.new_zeros(len(layer)))


@pytest.mark.parametrize(("first", "second"), [(4, 5), (4, 300), (300, 4), (300, 200), (10, 10)])
def test_moments_add_up_to_those_of_all_rows(first, second):
    rows = normal(first + second, 10, seed=0) * torch.arange(1, 11) + 3
    total, wanted = moments(rows[:first]) + moments(rows[first:]), moments(rows)
    assert total.count == wanted.count
    assert torch.allclose(total.mean, wanted.mean, atol=1e-12)
    assert torch.allclose(total.dense(), wanted.dense(), atol=1e-11)


@pytest.mark.parametrize("outputs", [4, 40])
@pytest.mark.parametrize("count", [3, 7, 200])
def test_error_and_variance_are_those_of_the_samples(count, outputs):
    z, y = normal(count, 6, seed=0) + 2, normal(count, outputs, seed=1) - 1
    H, bias, M = normal(outputs, 6, seed=2), normal(outputs, seed=3), normal(outputs, outputs, seed=4)
    for known, seen in ((joint(z, y), y), (joint(z, y).weighed((M @ M.T).matmul), y @ M @ M.T)):
        wanted = (seen - z @ H.T - bias).square().sum(1).mean()
        assert known.error(H, bias) == pytest.approx(float(wanted), rel=1e-10)
        assert known.variance == pytest.approx(float(seen.var(0, correction=0).sum()), rel=1e-10)


def test_of_fewer_samples_than_outputs_no_square_of_outputs_is_made():
    parts = [joint(normal(10, 6, seed=seed), normal(10, 40, seed=2 + seed)) for seed in (0, 1)]
    assert [len(part.outputs) for part in (*parts, parts[0].joined(parts[1]))] == [10, 10, 21]


@pytest.mark.parametrize("outputs", [4, 40])
@pytest.mark.parametrize(("first", "second"), [(4, 3), (4, 300), (300, 4), (300, 200), (7, 8)])
def test_two_sets_of_samples_count_as_one(first, second, outputs):
    z, y = normal(first + second, 6, seed=0) + 2, normal(first + second, outputs, seed=1) - 1
    parts = joint(z[:first], y[:first]), joint(z[first:], y[first:])
    both, wanted = parts[0].joined(parts[1]), joint(z, y)
    assert both.inputs.count == first + second
    assert torch.allclose(both.inputs.dense(), wanted.inputs.dense(), atol=1e-11)
    assert torch.allclose(both.of_both, wanted.of_both, atol=1e-11)
    assert torch.allclose(both.of_outputs.dense(), wanted.of_outputs.dense(), atol=1e-11)
    assert torch.allclose(both.mean, wanted.mean, atol=1e-12)
    factors = normal(2, 6, seed=3), normal(outputs, 2, seed=4)
    chain = linear_chain(normal(outputs, 6, seed=2), 2, factors)
    missed = y - z @ matrix_of(chain).T
    assert error_over(parts, chain) == pytest.approx(float(missed.square().sum(1).mean()), rel=1e-10)
    assert variance_over(parts) == pytest.approx(float(y.var(0, correction=0).sum()), rel=1e-10)


@pytest.mark.parametrize("count", [7, 200])
def test_moments_behind_a_stage_are_those_of_its_outputs(count):
    z, y, basis = normal(count, 6, seed=0) + 2, normal(count, 4, seed=1), normal(3, 6, seed=2)
    seen, wanted = joint(z, y).through(basis), joint(z @ basis.T, y)
    assert torch.allclose(seen.inputs.dense(), wanted.inputs.dense(), atol=1e-11)
    assert torch.allclose(seen.inputs.mean, wanted.inputs.mean, atol=1e-12)


def test_a_linear_truth_is_found():
    inner, outer, bias = normal(2, 6, seed=2), normal(5, 2, seed=0), normal(5, seed=1)
    z = normal(4000, 6, seed=3) + 1
    y = z @ (outer @ inner).T + bias
    off = (inner + normal(2, 6, seed=5), outer + normal(5, 2, seed=4))
    layer = normal(5, 6, seed=6)
    chain = linear_chain(layer, 2, off)
    found = refit(joint(z[:3000], y[:3000]), joint(z[3000:], y[3000:]), chain, layer)
    assert [weight.shape for weight in found.weights] == [(2, 6), (5, 2)]
    assert torch.allclose(matrix_of(found), outer @ inner, atol=5e-3)
    assert torch.allclose(found.bias, bias, atol=1e-2)


def test_noise_that_does_not_generalise_changes_nothing():
    layer = normal(4, 30, seed=0)
    left, values, right = torch.linalg.svd(layer, full_matrices=False)
    z = normal(2040, 30, seed=1)
    y = z @ layer.T + 5 * normal(2040, 4, seed=2)
    y = y - (y - z @ layer.T)[40:].mean(0)
    chain = linear_chain(layer, 4, (right, left * values))
    assert refit(joint(z[:40], y[:40]), joint(z[40:], y[40:]), chain, layer) is chain


def test_with_fewer_samples_than_inputs_only_the_last_stage_moves():
    inner, outer, truth = normal(3, 50, seed=0), normal(5, 3, seed=1), normal(5, 3, seed=2)
    z = normal(60, 50, seed=3)
    y = z @ (truth @ inner).T
    chain = linear_chain(outer @ inner, 3, (inner, outer))
    found = refit(joint(z[:40], y[:40]), joint(z[40:], y[40:]), chain, outer @ inner)
    assert found.weights[0] is inner
    assert torch.allclose(found.weights[1], truth, atol=2e-2)
