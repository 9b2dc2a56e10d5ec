"""The polyadic solver: sweeps against plain least squares, descent, degeneracy and its cure."""

from __future__ import annotations

import inspect
import itertools
import math

import pytest
import torch
from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped
from torch import Tensor

from fxdecomp.decompositions.polyadic import als, fit, separable
from fxdecomp.decompositions.polyadic.als import Kernel, descend, even_norms, khatri_rao
from fxdecomp.decompositions.polyadic.fit import ENERGY, ROUNDING, Effort, PolyadicFit
from fxdecomp.decompositions.polyadic.separable import separable_terms
from fxdecomp.linalg.factoring import left_svd
from tests.decompositions.layers_in_torch import relative_error

SHAPES = [(9, 7, 3), (9, 7, 3, 2), (4, 11, 2, 3, 2)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def drawn_factors(shape: tuple[int, ...], rank: int, seed: int = 1) -> tuple[Tensor, ...]:
    return tuple(drawn((n, rank), seed + mode) for mode, n in enumerate(shape))


def composed(factors: tuple[Tensor, ...]) -> Tensor:
    return (khatri_rao(factors)).sum(1).reshape([len(factor) for factor in factors])


def fitted(tensor: Tensor, rank: int, *, sweeps: int = 100, tolerance: float = 2e-5) -> PolyadicFit:
    def basis(mode: int) -> Tensor:
        return left_svd(tensor.movedim(mode, 0).flatten(1))[0]

    return fit.fit_polyadic(tensor, basis, rank, Effort(tolerance, sweeps))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_are_what_the_annotations_say(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    checked = 0
    for owner in (als, separable, fit, Kernel):
        for name, value in vars(owner).items():
            if inspect.isfunction(value) and value.__module__.startswith("fxdecomp.decompositions.polyadic"):
                monkeypatch.setattr(owner, name, jaxtyped(value, typechecker=beartype))
                checked += 1
    assert checked >= 20
    fitted(drawn(shape), 3)
    with pytest.raises(TypeCheckError):
        als.gram(drawn(shape))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_sweep_solves_one_least_squares_problem_a_mode(shape: tuple[int, ...]) -> None:
    tensor, factors = drawn(shape), drawn_factors(shape, 4)
    expected = list(factors)
    for mode in [*range(1, len(shape)), 0]:
        others = [factor for other, factor in enumerate(expected) if other != mode]
        unfolding = tensor.movedim(mode, 0).flatten(1)
        expected[mode] = torch.linalg.lstsq(khatri_rao(others), unfolding.T).solution.T
    point = Kernel(tensor).sweep(factors, damping=0.0)
    error = relative_error(composed(tuple(expected)), tensor)
    assert relative_error(composed(point.factors), composed(tuple(expected))) < 1e-9
    assert point.error == pytest.approx(error, rel=1e-9)
    terms = khatri_rao(point.factors).norm(dim=0).square().sum() / tensor.square().sum()
    assert point.energy == pytest.approx(float(terms), rel=1e-9)


@pytest.mark.parametrize("damping", [1e-3, 0.1, 10.0])
def test_a_damped_sweep_minimises_the_penalised_error(damping: float) -> None:
    shape = (6, 5, 3)
    tensor, factors = drawn(shape), drawn_factors(shape, 4)
    point = Kernel(tensor).sweep(factors, damping)

    def penalised(A: Tensor) -> Tensor:
        terms = khatri_rao((A, *point.factors[1:]))
        return (terms.sum(1) - tensor.flatten()).square().sum() + damping * terms.square().sum()

    A = point.factors[0].clone().requires_grad_()
    value = penalised(A)
    (gradient,) = torch.autograd.grad(value, A)
    assert float(gradient.norm()) < 1e-9 * value.item()
    assert value.item() == pytest.approx(
        point.objective(damping) ** 2 * float(tensor.square().sum()), rel=1e-9
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rank", [1, 3, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_objective_never_rises(shape: tuple[int, ...], rank: int, dtype: torch.dtype) -> None:
    fit = fitted(drawn(shape, 5, dtype), rank)
    assert len(fit.objectives) > 1
    assert all(later <= earlier for earlier, later in itertools.pairwise(fit.objectives))


def test_the_error_reported_is_the_measured_one() -> None:
    tensor = drawn((9, 7, 3, 3), dtype=torch.float32)
    fit = fitted(tensor, 10)
    assert fit.error == pytest.approx(relative_error(composed(fit.factors), tensor), rel=1e-4)


def test_extrapolation_shortens_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = drawn((24, 20, 3, 3), 1)
    start = separable_terms(tensor, left_svd(tensor.flatten(1))[0], 16)
    quick = descend(Kernel(tensor), start, 0.0, 0.0, 20).point.error
    monkeypatch.setattr("fxdecomp.decompositions.polyadic.als._MOMENTUM", 0.0)
    plain = descend(Kernel(tensor), start, 0.0, 0.0, 40).point.error
    assert quick < plain


def test_a_kernel_of_known_rank_is_found() -> None:
    tensor = composed(drawn_factors((16, 12, 3, 3), 3))
    fit = fitted(tensor, 3, sweeps=500, tolerance=1e-7)
    assert relative_error(composed(fit.factors), tensor) < 1e-5


def test_more_terms_than_the_kernel_has_do_no_harm() -> None:
    tensor = composed(drawn_factors((10, 8, 3), 2))
    fit = fitted(tensor, 7, sweeps=500, tolerance=1e-7)
    assert fit.error < 1e-3
    assert all(torch.isfinite(factor).all() for factor in fit.factors)


def test_terms_that_are_rounding_do_no_harm() -> None:
    found = fitted(torch.full((6, 6, 9), 0.37), 36)
    assert found.error < 1e-5
    assert all(torch.isfinite(factor).all() for factor in found.factors)


def test_vectors_of_a_term_have_even_norms() -> None:
    fit = fitted(drawn((9, 7, 3, 3), dtype=torch.float32), 5)
    norms = torch.stack([factor.norm(dim=0) for factor in fit.factors])
    assert torch.allclose(norms, norms.mean(0).expand_as(norms), rtol=1e-4)
    a, b = drawn((3, 2)), drawn((4, 2))
    b[:, 1] = 0
    even = even_norms((a, b))
    assert relative_error(composed(even), composed((a, b))) < 1e-14
    assert float(even[0][:, 1].norm()) == 0


def test_the_same_call_gives_the_same_factors() -> None:
    tensor = drawn((24, 20, 3, 3), dtype=torch.float32)
    first, second = fitted(tensor, 9), fitted(tensor, 9)
    assert all(torch.equal(a, b) for a, b in zip(first.factors, second.factors, strict=True))


def degenerate(n: int = 8) -> Tensor:
    """A tensor of rank 3 that tensors of rank 2 come arbitrarily close to, by terms that grow and cancel."""
    a, b, c, x, y, z = (drawn((n,), seed) / n**0.5 for seed in range(6))

    def outer(*vectors: Tensor) -> Tensor:
        return torch.einsum("i,j,k->ijk", *vectors)

    return outer(x, b, c) + outer(a, y, c) + outer(a, b, z)


def test_terms_that_would_cancel_each_other_are_kept_small() -> None:
    tensor = degenerate()
    start = separable_terms(tensor, left_svd(tensor.flatten(1))[0], 2)
    free = descend(Kernel(tensor), start, 0.0, 0.0, 2000).point
    assert free.energy > 30 * ENERGY  # plain least squares runs away
    for sweeps in (50, 100, 300):  # however far the terms have grown when the cure begins
        fit = fitted(tensor, 2, sweeps=sweeps)
        assert fit.energy < ENERGY
        assert fit.error < 0.01


def test_the_cure_is_worth_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = degenerate()
    cured = fitted(tensor, 2, sweeps=300)
    monkeypatch.setattr("fxdecomp.decompositions.polyadic.fit.ENERGY", math.inf)
    left = fitted(tensor, 2, sweeps=300)
    assert cured.energy < left.energy / 3
    noise = [
        drawn(factor.shape, 9) * ROUNDING * factor.norm() / factor.numel() ** 0.5 for factor in left.factors
    ]

    def rounded(fit: PolyadicFit) -> float:
        moved = tuple(factor + n for factor, n in zip(fit.factors, noise, strict=True))
        return relative_error(composed(moved), tensor)

    assert rounded(cured) < rounded(left)


def test_the_cure_works_in_single_precision() -> None:
    fit = fitted(degenerate().float(), 2, sweeps=300)
    assert fit.energy < ENERGY
    assert fit.error == pytest.approx(relative_error(composed(fit.factors), degenerate()), rel=1e-3)
    assert fit.error < 0.01


def test_a_kernel_without_a_decaying_spectrum_is_not_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    cores: list[tuple[int, ...]] = []

    def seen(tensor: Tensor, basis: Tensor, rank: int) -> tuple[Tensor, ...]:
        cores.append(tuple(tensor.shape))
        return separable_terms(tensor, basis, rank)

    monkeypatch.setattr("fxdecomp.decompositions.polyadic.fit.separable_terms", seen)
    noise = drawn((48, 40, 3, 3))
    fitted(noise, 8)
    smooth = composed(drawn_factors((48, 40, 3, 3), 6)) + 0.1 * noise
    fitted(smooth, 8)
    fitted(smooth, 30)
    assert cores == [(48, 40, 3, 3), (12, 12, 3, 3), (48, 40, 3, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_start_is_exact_when_it_takes_every_term(shape: tuple[int, ...]) -> None:
    tensor = drawn(shape)
    terms = separable_terms(tensor, left_svd(tensor.flatten(1))[0], math.prod(shape))
    assert relative_error(composed(terms), tensor) < 1e-12
    norms = khatri_rao(terms).norm(dim=0)
    assert norms.square().sum() == pytest.approx(tensor.square().sum())  # as of orthogonal terms
