"""Tucker-2 and CP against TensorLy's, at equal ranks."""

from __future__ import annotations

import numpy as np
import pytest
import tensorly
import torch
from tensorly.cp_tensor import cp_to_tensor
from tensorly.decomposition import parafac, partial_tucker
from tensorly.tenalg import multi_mode_dot

from fxdecomp.decompositions import decompose, method_named, problems_of
from fxdecomp.layers import LayerSpec
from tests.decompositions.layers_in_torch import relative_error

SHAPES = [(24, 16, 3, 3), (10, 32, 5, 3), (16, 16, 2, 2)]


def smooth_kernel(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Terms of falling weight plus noise: a spectrum like that of trained kernels."""
    generator = np.random.default_rng(seed)
    total = generator.normal(size=shape) * 0.02
    for term in range(20):
        vectors = [generator.normal(size=n) / n**0.5 for n in shape]
        total += 0.8**term * np.einsum("t,s,y,x->tsyx", *vectors)
    return torch.from_numpy(total)


def ours(name: str, kernel: torch.Tensor, rank: tuple[int, ...]) -> float:
    spec = LayerSpec(kernel.shape[1], kernel.shape[0], kernel=tuple(kernel.shape[2:]))
    chain = decompose(method_named(name), problems_of(kernel, spec), spec, rank, dtype=torch.float64)
    return relative_error(chain.composed_weight(), kernel)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["smooth", "random"])
def test_tucker2_is_as_good(shape: tuple[int, ...], kind: str) -> None:
    kernel = smooth_kernel(shape, 0)
    if kind == "random":
        kernel = torch.from_numpy(np.random.default_rng(1).normal(size=shape))
    rank = (shape[0] // 2, shape[1] // 3)
    with tensorly.backend_context("numpy"):
        (core, factors), _ = partial_tucker(kernel.numpy(), rank, modes=[0, 1], tol=1e-7)
        theirs = relative_error(torch.from_numpy(multi_mode_dot(core, factors, modes=[0, 1])), kernel)
    assert ours("tucker2", kernel, rank) < 1.01 * theirs


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["smooth", "random"])
@pytest.mark.parametrize("rank", [4, 12])
@pytest.mark.filterwarnings("ignore:Trying to compute SVD with n_eigenvecs:UserWarning")
@pytest.mark.parametrize("name", ["cp", "cp3"])
def test_cp_is_as_good(shape: tuple[int, ...], kind: str, rank: int, name: str) -> None:
    kernel = smooth_kernel(shape, 0)
    if kind == "random":
        kernel = torch.from_numpy(np.random.default_rng(1).normal(size=shape))
    tensor = kernel.flatten(2) if name == "cp3" else kernel
    with tensorly.backend_context("numpy"):
        fit = parafac(tensor.numpy(), rank, n_iter_max=200, init="svd", tol=1e-7, random_state=0)
        theirs = relative_error(torch.from_numpy(cp_to_tensor(fit)), tensor)
    assert ours(name, kernel, (rank,)) < 1.02 * theirs
