"""Truncated SVDs: the digits that squaring costs, and the leading vectors of large matrices."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fxdecomp.decompositions import Problem, problem
from fxdecomp.layers import LayerSpec
from fxdecomp.linalg import range_finder
from fxdecomp.linalg.factoring import (
    add_below,
    gram,
    left_svd,
    mirror,
    singular_values,
    symmetric_product,
)
from fxdecomp.linalg.range_finder import leading_left
from tests.decompositions.layers_in_torch import relative_error

SHAPES = [(40, 60), (60, 40), (50, 50)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def of_spectrum(shape: tuple[int, int], values: Tensor, dtype: torch.dtype) -> Tensor:
    """A matrix of these singular values, and drawn vectors."""
    n = len(values)
    U, V = (torch.linalg.qr(torch.randn(size, n, generator=generator(size)).double())[0] for size in shape)
    return ((U * values.double()) @ V.T).to(dtype)


def loss(matrix: Tensor, basis: Tensor) -> float:
    wide, basis = matrix.double(), basis.double()
    return float((wide - basis @ (basis.T @ wide)).norm())


def best_loss(matrix: Tensor, rank: int) -> float:
    return float(torch.linalg.svdvals(matrix.double())[rank:].norm())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "decades", "digits"), [(torch.float32, 6, 2e-7), (torch.float64, 14, 1e-15)], ids=str
)
def test_no_digit_is_lost_on_ill_conditioned_matrices(
    shape: tuple[int, int], dtype: torch.dtype, decades: int, digits: float
) -> None:
    values = torch.logspace(0, -decades, 40, dtype=torch.float64)
    matrix = of_spectrum(shape, values, dtype)
    wanted = torch.linalg.svdvals(matrix.double())
    basis, found = left_svd(matrix)
    assert float((found.double() - wanted).abs().max()) < 3 * digits
    assert float((singular_values(matrix).double() - wanted).abs().max()) < 3 * digits
    for rank in (5, 20, 35):
        assert loss(matrix, basis[:, :rank]) < best_loss(matrix, rank) + 10 * digits


@pytest.mark.parametrize("block", [8, 4, 1], ids="blocks of {}".format)
def test_the_gram_matrix_is_the_plain_product(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxdecomp.linalg.factoring._BLOCKED", block)  # 4, 5 and 8 blocks
    matrix = torch.randn(23, 3000, generator=generator())
    wanted = matrix.double() @ matrix.double().T
    assert relative_error(gram(matrix), wanted) < 1e-14
    assert relative_error(symmetric_product(matrix.double()), wanted) < 1e-14


@pytest.mark.parametrize("block", [64, 8, 1], ids="blocks of {}".format)
def test_products_that_are_added_below_the_diagonal_are_mirrored_once(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxdecomp.linalg.factoring._BLOCKED", block)  # 1, 4 and 8 blocks
    parts = torch.randn(23, 90, generator=generator()).double().split(40, dim=1)
    total = torch.zeros(23, 23, dtype=torch.float64)
    for part in parts:
        add_below(total, part)
    mirror(total)
    whole = torch.cat(parts, dim=1)
    assert relative_error(total, whole @ whole.T) < 1e-14


LARGE_SHAPES = [(300, 400), (300, 1200), (900, 300)]


@pytest.fixture
def from_64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small matrices count as large."""
    monkeypatch.setattr(range_finder, "LARGE", 64)
    monkeypatch.setattr(problem, "LARGE", 64)


def spectra(n: int) -> dict[str, Tensor]:
    steps = torch.arange(1, n + 1, dtype=torch.float64)
    return {
        "flat": torch.linspace(2, 1, n, dtype=torch.float64),
        "slow": steps**-0.6,
        "exponential": 0.98**steps,
        "step": torch.where(steps <= 40, 1.0, 0.05),
        "cluster": torch.where(steps <= 200, 1.0, 0.3),
    }


@pytest.mark.usefixtures("from_64")
@pytest.mark.parametrize("shape", LARGE_SHAPES, ids=str)
@pytest.mark.parametrize("rank", [8, 40, 120])
@pytest.mark.parametrize("kind", ["flat", "slow", "exponential", "step", "cluster"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_range_finder_is_close_to_the_best(
    shape: tuple[int, int], rank: int, kind: str, dtype: torch.dtype
) -> None:
    matrix = of_spectrum(shape, spectra(300)[kind], dtype)
    basis = leading_left(matrix, rank)
    assert basis is not None
    assert basis.shape == (shape[0], rank)
    assert float((basis.T @ basis - torch.eye(rank).to(basis)).abs().max()) < 1e-5
    assert loss(matrix, basis) < 1.002 * best_loss(matrix, rank)


@pytest.mark.usefixtures("from_64")
def test_the_range_finder_is_deterministic_and_draws_from_its_own_seed() -> None:
    matrix = torch.randn(200, 300, generator=generator())
    torch.manual_seed(1)
    first, state = leading_left(matrix, 30), torch.get_rng_state()
    torch.manual_seed(2)
    second = leading_left(matrix, 30)
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.usefixtures("from_64")
def test_the_range_finder_declines_what_squaring_would_spoil() -> None:
    falling = of_spectrum((200, 300), torch.logspace(0, -6, 200, dtype=torch.float64), torch.float32)
    assert leading_left(falling, 60) is None
    assert leading_left(torch.zeros(200, 300), 30) is None
    assert leading_left(torch.randn(200, 300, generator=generator()), 150) is None  # no small share
    assert leading_left(torch.randn(60, 300, generator=generator()), 5) is None  # not large


@pytest.mark.usefixtures("from_64")
@pytest.mark.parametrize("decades", [2, 6])
def test_a_large_linear_is_truncated_as_well_as_by_the_full_svd(decades: int) -> None:
    matrix = of_spectrum((200, 300), torch.logspace(0, -decades, 200, dtype=torch.float64), torch.float32)
    known = Problem(matrix, LayerSpec(300, 200))
    columns, rows = known.truncated(60, 0)
    error = float((matrix.double() - columns.double() @ rows.double()).norm())
    assert error < 1.002 * best_loss(matrix, 60) + 1e-6
    assert torch.allclose(columns.norm(dim=0), rows.norm(dim=1), rtol=1e-3)


@pytest.mark.usefixtures("from_64")
def test_a_spectrum_is_computed_once_and_without_vectors_where_that_is_dearer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []

    def counted(name: str) -> None:
        right = getattr(problem, name)
        monkeypatch.setattr(problem, name, lambda *given: calls.append(name) or right(*given))

    counted("left_svd")
    counted("singular_values")
    large = Problem(torch.randn(80, 90, generator=generator()), LayerSpec(90, 80))
    assert large.spectrum(0) is large.spectrum(0)
    assert calls == ["singular_values"]
    calls.clear()
    small = replace(large, weight=torch.randn(20, 30, generator=generator()), _cache={}, _spectra={})
    values = small.spectrum(0).singular_values
    assert values is small.left_svd(0)[1]
    assert small.leading(5, 0).shape == (20, 5)
    assert small.truncated(7, 0)[0].shape == (20, 7)
    assert calls == ["left_svd"]


def test_spectra_do_not_depend_on_how_they_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, spec = torch.randn(80, 90, generator=generator()), LayerSpec(90, 80)
    full = Problem(weight, spec).spectrum(0).singular_values
    monkeypatch.setattr(problem, "LARGE", 64)
    alone = Problem(weight, spec).spectrum(0).singular_values
    assert float((full - alone).abs().max()) < 1e-5 * float(full[0])
    assert math.isclose(float(alone.square().sum()), float(weight.square().sum()), rel_tol=1e-5)
