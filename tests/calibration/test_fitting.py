import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fxdecomp.decompositions import METHODS, Decomposition, Problem, decompose, method_named, problems_of
from fxdecomp.decompositions.whitening import whitened_svd
from fxdecomp.layers import LayerSpec
from tests.calibration.drawn_moments import KINDS, draw_moments, output_error
from tests.decompositions.layers_in_torch import draw_weight, geometries

SMALL = settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def composed(method: Decomposition, problems: tuple[Problem, ...], spec: LayerSpec, rank: tuple[int, ...]):
    return decompose(method, problems, spec, rank, dtype=torch.float64).composed_weight()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@SMALL
@given(spec=geometries(), seed=st.integers(0, 99), share=st.sampled_from((0.2, 0.5, 0.8)))
def test_never_worse_than_the_bare_weight(method, kind, spec, seed, share):
    spec = spec.per_group
    if method.refusal(spec):
        return
    weight = draw_weight(spec, seed)
    moments = draw_moments(spec, kind, seed)
    rank = tuple(min(10, max(1, round(share * limit))) for limit in method.rank_limits(spec))
    plain = composed(method, problems_of(weight, spec), spec, rank)
    known = composed(method, problems_of(weight, spec, (moments,)), spec, rank)
    assert bool(torch.isfinite(known).all())
    error, before = output_error(weight, known, moments), output_error(weight, plain, moments)
    assert error <= before + 1e-6
    if kind == "white" and method.name in ("svd", "channel_svd"):
        assert error == pytest.approx(before, abs=1e-9)


def test_correlated_inputs_are_worth_knowing():
    spec = LayerSpec(6, 8, kernel=(3, 3), input_size=(8, 8))
    weight, moments = draw_weight(spec, 0), draw_moments(spec, "correlated", 1)
    for name, rank in {
        "tucker2": (3, 3),
        "cp": (8,),
        "cp3": (8,),
        "spatial_svd": (5,),
        "channel_svd": (3,),
        "tensor_train": (3, 5, 3),
    }.items():
        method = method_named(name)
        plain = composed(method, problems_of(weight, spec), spec, rank)
        known = composed(method, problems_of(weight, spec, (moments,)), spec, rank)
        assert output_error(weight, known, moments) < 0.7 * output_error(weight, plain, moments), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "spec"),
    [("svd", LayerSpec(7, 9)), ("channel_svd", LayerSpec(3, 7, kernel=(2, 3), input_size=(5, 5)))],
)
def test_the_error_is_the_tail_of_the_whitened_spectrum(name, spec, kind):
    weight, moments = draw_weight(spec, 3), draw_moments(spec, kind, 4)
    sigma = moments.dense()
    values, vectors = torch.linalg.eigh(sigma)
    whitened = weight.flatten(1) @ (vectors * values.clamp_min(0).sqrt())
    squares = torch.linalg.svdvals(whitened).square()
    problem = problems_of(weight, spec, (moments,))
    for rank in (1, 3, 6):
        known = composed(method_named(name), problem, spec, (rank,))
        wanted = float(squares[rank:].sum() / squares.sum()) if squares.sum() > 1e-20 else 0.0
        assert output_error(weight, known, moments) == pytest.approx(wanted, abs=1e-9)
    assert torch.allclose(
        problem[0].spectrum(0).singular_values.square(), squares, atol=1e-9 * float(squares[0] + 1)
    )


def test_input_side_spectrum_is_the_whitened_one():
    spec = LayerSpec(4, 5, kernel=(3,), input_size=(9,))
    weight, moments = draw_weight(spec, 0), draw_moments(spec, "correlated", 0)
    sigma = moments.covariance.reshape(4, 3, 4, 3)
    channels = sum(sigma[:, k, :, k] for k in range(3))
    lower = torch.linalg.cholesky(channels)
    wanted = torch.linalg.svdvals(lower.T @ weight.transpose(0, 1).flatten(1))
    basis, values = whitened_svd(Problem(weight, spec).unfold(1), tuple(weight.shape), moments, (1,))
    assert torch.allclose(values, wanted, rtol=1e-9)
    assert torch.allclose(basis.T @ basis, torch.eye(4, dtype=torch.float64), atol=1e-9)
