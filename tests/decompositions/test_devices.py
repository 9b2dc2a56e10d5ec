"""The solvers on a device: each works where its weight is."""

from __future__ import annotations

import pytest
import torch

from fxdecomp.decompositions import METHODS, Decomposition, decompose, problems_of
from fxdecomp.layers import LayerSpec
from fxdecomp.ranks import VBMF, Energy
from tests.decompositions.layers_in_torch import draw_weight, relative_error

SPEC = LayerSpec(24, 32, kernel=(3, 3))
LINEAR = LayerSpec(1100, 1030)


def drawn(method: Decomposition) -> tuple[LayerSpec, torch.Tensor]:
    spec = LINEAR if method.name == "svd" else SPEC
    return spec, draw_weight(spec, 0, torch.float32)


def solved(
    method: Decomposition, spec: LayerSpec, weight: torch.Tensor
) -> tuple[tuple[int, ...] | None, torch.Tensor]:
    problems = problems_of(weight, spec)
    rank = Energy(0.7).choose(method, spec, problems)
    VBMF().choose(method, spec, problems)
    fixed = tuple(max(1, limit // 4) for limit in method.rank_limits(spec))
    if method.name.startswith("cp"):
        fixed = (16,)
    chain = decompose(method, problems, spec, fixed, dtype=torch.float32)
    assert all(stage.weight.device == weight.device for stage in chain.stages)
    return rank, (chain.composed_weight() - weight).cpu()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_solver_stays_on_the_weights_device(method: Decomposition) -> None:
    # A tensor made on the default device meets one on the CPU: an error, whatever the machine.
    spec, weight = drawn(method)
    with torch.device("meta"):
        rank, rest = solved(method, spec, weight)
    assert rank is not None
    assert bool(torch.isfinite(rest).all())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_solver_gives_the_same_on_a_gpu(method: Decomposition) -> None:
    spec, weight = drawn(method)
    rank, rest = solved(method, spec, weight)
    rank_there, rest_there = solved(method, spec, weight.cuda())
    assert rank_there == rank
    assert relative_error(rest_there, rest) < 0.05
    assert float(rest_there.norm()) < 1.005 * float(rest.norm())
