"""The analytic solution against the free energy itself, minimised by brute force, and against known ranks.

The variational free energy of `V = B A^T + noise` with one Gaussian a column and the priors' variances
optimised (Nakajima et al. 2013, equation 8 and after) is, with `u` and `v` the signal-to-variance ratios of
a component's two factors and the scale between them optimised,

    2F = L M log(s2) + sum_h g_h^2 / s2 + sum_h min(0, min_{u, v} f_h(u, v)),
    f_h = M log(1 + u) + L log(1 + v) - g_h^2 / s2 * u v / ((1 + u) (1 + v)).

The rank is the number of components whose minimum is below zero, at the s2 that minimises the whole.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fxdecomp.decompositions.problem import Spectrum
from fxdecomp.ranks import VBMF
from fxdecomp.ranks.vbmf import signal_rank

LOG_U = np.arange(-10, 12, 0.02)


def component_minima(z: np.ndarray, L: int, M: int) -> np.ndarray:
    """`min f` for every `g^2 / s2 = z`: the best v for a given u is in closed form, u is searched."""
    u = np.exp(LOG_U)
    gain = z[..., None] * u / (1 + u)
    # d/dv [L log(1 + v) - gain v / (1 + v)] = 0 at 1 + v = gain / L.
    v = np.maximum(gain / L - 1, 0)
    f = M * np.log1p(u) + L * np.log1p(v) - gain * v / (1 + v)
    return np.minimum(f.min(-1), 0)


def brute_force_rank(values: np.ndarray, L: int, M: int) -> int:
    def energies(log_variances: np.ndarray) -> np.ndarray:
        z = values**2 / np.exp(log_variances)[:, None]
        return L * M * log_variances + (z + component_minima(z, L, M)).sum(1)

    top = np.log(np.sum(values**2) / (L * M))
    grid = np.linspace(top - 8, top + 0.5, 86)
    for _ in range(3):  # ever finer around the best
        best, step = grid[np.argmin(energies(grid))], grid[1] - grid[0]
        grid = np.linspace(best - step, best + step, 21)
    return int(np.sum(component_minima(values**2 / np.exp(best), L, M) < -1e-9))


def noisy(L: int, M: int, rank: int, noise: float, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    signal = generator.normal(size=(L, rank)) @ generator.normal(size=(rank, M)) / max(rank, 1) ** 0.5
    return signal + noise * generator.normal(size=(L, M))


def singular_values(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.svd(matrix, compute_uv=False)


@pytest.mark.parametrize("shape", [(12, 12), (10, 40), (24, 30)], ids=str)
@pytest.mark.parametrize("rank", [0, 2, 5])
@pytest.mark.parametrize("noise", [0.05, 0.5, 2.0])
def test_the_analytic_rank_minimises_the_free_energy(shape: tuple[int, int], rank: int, noise: float) -> None:
    for seed in range(2):
        values = singular_values(noisy(*shape, rank, noise, seed))
        assert signal_rank(values, shape) == brute_force_rank(values, *shape)


@pytest.mark.parametrize("shape", [(64, 576), (128, 128), (300, 40), (512, 64)], ids=str)
@pytest.mark.parametrize("rank", [1, 5, 16])
@pytest.mark.parametrize("noise", [1e-3, 0.05, 0.3])
def test_a_known_rank_is_found(shape: tuple[int, int], rank: int, noise: float) -> None:
    values = singular_values(noisy(*shape, rank, noise, seed=rank))
    assert signal_rank(values, shape) == rank


@pytest.mark.parametrize("shape", [(64, 576), (128, 128), (300, 40), (8, 8), (512, 64)], ids=str)
@pytest.mark.parametrize("noise", [1e-20, 1.0, 1e20])
def test_pure_noise_has_rank_zero(shape: tuple[int, int], noise: float) -> None:
    for seed in range(3):
        assert signal_rank(singular_values(noisy(*shape, 0, noise, seed)), shape) == 0


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_the_scale_does_not_matter(scale: float) -> None:
    values = singular_values(noisy(40, 90, 6, 0.3, 0))
    assert signal_rank(values * scale, (40, 90)) == signal_rank(values, (40, 90)) == 6


def test_the_shape_may_be_either_way_round() -> None:
    values = singular_values(noisy(40, 90, 6, 0.3, 0))
    assert signal_rank(values, (90, 40)) == signal_rank(values, (40, 90))


def test_without_noise_the_numerical_rank_is_found() -> None:
    values = singular_values(noisy(30, 50, 4, 0.0, 0))
    assert signal_rank(values, (30, 50)) == 4


def test_a_zero_matrix_has_rank_zero() -> None:
    assert VBMF().rank_of(Spectrum(torch.zeros(5), (5, 9))) == 0


def test_one_by_one_and_single_rows_do_not_fail() -> None:
    assert VBMF().rank_of(Spectrum(torch.ones(1), (1, 1))) in (0, 1)
    assert VBMF().rank_of(Spectrum(torch.ones(1), (1, 27))) in (0, 1)
