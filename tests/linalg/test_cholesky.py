"""The triangular factor: exact with a shift, found for singular matrices, and the matrix stays."""

from __future__ import annotations

import pytest
import torch

from fxdecomp.errors import CalibrationError
from fxdecomp.linalg.cholesky import cholesky


def covariance(rows: int, *batch: int) -> torch.Tensor:
    z = torch.randn(*batch, rows, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return z.mT @ z


@pytest.mark.parametrize("batch", [(), (3,)])
def test_a_shift_is_a_share_of_the_mean_diagonal(batch: tuple[int, ...]) -> None:
    given = covariance(20, *batch)
    kept = given.clone()
    lower = cholesky(given, 0.5)
    mean = kept.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    wanted = kept + 0.5 * mean * torch.eye(6, dtype=torch.float64)
    assert torch.allclose(lower @ lower.mT, wanted, rtol=1e-8)
    assert torch.equal(lower, lower.tril())
    assert torch.equal(given, kept)


def test_a_singular_matrix_has_a_factor_too() -> None:
    given = covariance(2)
    lower = cholesky(given)
    assert torch.allclose(lower @ lower.mT, given, atol=1e-6)


def test_a_matrix_that_is_not_finite_has_none() -> None:
    with pytest.raises(CalibrationError, match="overflow"):
        cholesky(covariance(20) * torch.inf)
