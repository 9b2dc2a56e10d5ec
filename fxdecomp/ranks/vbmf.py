"""Variational Bayesian matrix factorisation: how many singular values stand out of the noise.

The observation `V = B A^T + noise` has L rows, M >= L columns and singular values g_1 >= ... >= g_L. With
`a = L / M` and `t` the zero of `phi(t) + phi(t / a)`, `phi(z) = log(z + 1) / z - 1/2`, empirical VB keeps

    g_h > sqrt(M s2 x),    x = (1 + t) (1 + a / t),

and the noise variance s2, where it is not known, minimises

    sum_h  psi0(g_h^2 / (M s2)) + [g_h^2 > M s2 x] psi1(g_h^2 / (M s2)),
    psi0(z) = z - log z,    psi1(z) = log(u + 1) + a log(u / a + 1) - u,
    u(z) = (z - (1 + a) + sqrt((z - (1 + a))^2 - 4 a)) / 2.

Source: Nakajima, Sugiyama, Babacan and Tomioka 2013, JMLR 14, theorems 2 and 3 and corollaries 1 and 2: the
global solution, in closed form but for one search over s2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq, minimize_scalar

from fxdecomp.decompositions.problem import Spectrum
from fxdecomp.ranks.spectral import SpectralRule


@final
@dataclass(frozen=True, slots=True)
class VBMF(SpectralRule):
    """The rank of the analytic global solution of empirical VB matrix factorisation, on each unfolding.

    Example:
        >>> import fxdecomp
        >>> fxdecomp.Policy(method="tucker2").rank
        VBMF()
    """

    name: ClassVar[str] = "vbmf"

    def rank_of(self, spectrum: Spectrum) -> int:
        """The number of singular values above the threshold; 0 for a matrix of noise."""
        values = spectrum.singular_values.double().cpu().numpy()
        return signal_rank(values, spectrum.shape)


def signal_rank(values: Float[np.ndarray, " n"], shape: tuple[int, int]) -> int:
    """The number of singular values that stand out of the noise.

    Args:
        values: All singular values, in any scale.
        shape: Of the matrix.

    Cost: a few hundred evaluations of a sum over the values.
    """
    L, M = min(shape), max(shape)
    top = float(np.max(values, initial=0.0))
    if top == 0:
        return 0
    squares = np.maximum(values / top, np.finfo(np.float64).eps) ** 2
    threshold = _threshold(L / M)
    variance = _noise_variance(squares, L, M, threshold)
    return int(np.sum(squares > M * variance * threshold))


def _threshold(alpha: float) -> float:
    """The least `g^2 / (M s2)` that is kept; `t` is near `2.5129 sqrt(alpha)`."""

    def phi(z: float) -> float:
        return math.log1p(z) / z - 0.5

    root = math.sqrt(alpha)
    t = float(brentq(lambda z: phi(z) + phi(z / alpha), 2 * root, 3 * root, xtol=1e-14))
    return (1 + t) * (1 + alpha / t)


def _noise_variance(squares: Float[np.ndarray, " n"], L: int, M: int, threshold: float) -> float:
    """The minimiser of the free energy, which has several local minima: a fine grid, then a polish."""
    alpha = L / M
    most = max(int(np.ceil(L / (1 + alpha))) - 1, 0)
    upper = float(np.sum(squares)) / (L * M)
    rest = squares[most:]
    lower = max(float(squares[most]) / (M * threshold), float(np.mean(rest)) / M)
    if lower >= upper:
        return upper

    def free_energy(log_variance: float) -> float:
        z = squares / (M * np.exp(log_variance))
        kept = z[z > threshold]
        shifted = kept - (1 + alpha)
        u = (shifted + np.sqrt(np.maximum(shifted**2 - 4 * alpha, 0))) / 2
        gain = np.log1p(u) + alpha * np.log1p(u / alpha) - u
        return float(np.sum(z - np.log(z)) + np.sum(gain))

    grid = np.linspace(np.log(lower), np.log(upper), 256)
    best = int(np.argmin([free_energy(point) for point in grid]))
    around = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    found = minimize_scalar(free_energy, bounds=around, method="bounded", options={"xatol": 1e-10})
    return float(np.exp(found.x))
