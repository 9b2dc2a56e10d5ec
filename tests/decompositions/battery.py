"""What every method must satisfy, as functions that raise AssertionError."""

from __future__ import annotations

import math

import torch
from torch.utils.flop_counter import FlopCounterMode

from fxdecomp.chains import Chain
from fxdecomp.decompositions import Decomposition, decompose, problems_of
from fxdecomp.layers import LayerSpec
from tests.decompositions.layers_in_torch import (
    apply_chain,
    apply_layer,
    draw_input,
    draw_weight,
    ranks_upwards,
    relative_error,
)

EXACT = {torch.float32: 1e-5, torch.float64: 1e-12}


def rank_at(method: Decomposition, spec: LayerSpec, share: float) -> tuple[int, ...]:
    """A share of the limits; CP's are so high that a dozen terms must do."""
    most = 12 if method.name.startswith("cp") else math.inf
    return tuple(max(1, round(share * min(limit, most))) for limit in method.rank_limits(spec.per_group))


def factorised(
    method: Decomposition, spec: LayerSpec, rank: tuple[int, ...], seed: int, dtype: torch.dtype
) -> Chain:
    weight = draw_weight(spec, seed, dtype)
    bias = torch.linspace(-1, 1, spec.out_channels, dtype=dtype)
    return decompose(method, problems_of(weight, spec), spec, rank, dtype=dtype, bias=bias)


def check_full_rank_is_exact(method: Decomposition, spec: LayerSpec, seed: int, dtype: torch.dtype) -> None:
    rank = method.rank_limits(spec.per_group)
    chain = factorised(method, spec, rank, seed, dtype)
    weight = draw_weight(spec, seed, dtype)
    assert relative_error(chain.composed_weight(), weight) < EXACT[dtype]
    x = draw_input(spec, seed + 1, dtype)
    bias = torch.linspace(-1, 1, spec.out_channels, dtype=dtype)
    assert relative_error(apply_chain(x, chain), apply_layer(x, spec, weight, bias)) < EXACT[dtype]


def check_chain_is_the_composed_layer(
    method: Decomposition, spec: LayerSpec, seed: int, share: float
) -> None:
    rank = rank_at(method, spec, share)
    chain = factorised(method, spec, rank, seed, torch.float64)
    x = draw_input(spec, seed + 1, torch.float64)
    bias = torch.linspace(-1, 1, spec.out_channels, dtype=torch.float64)
    wanted = apply_layer(x, spec, chain.composed_weight(), bias)
    got = apply_chain(x, chain)
    assert got.shape == wanted.shape
    assert relative_error(got, wanted) < 1e-12


def check_costs_are_the_measured_ones(
    method: Decomposition, spec: LayerSpec, seed: int, share: float
) -> None:
    rank = rank_at(method, spec, share)
    chain = factorised(method, spec, rank, seed, torch.float64)
    assert chain.form == method.form(spec, rank)
    assert tuple(stage.spec for stage in chain.stages) == tuple(stage.spec for stage in chain.form.stages)
    with FlopCounterMode(display=False) as counter:
        apply_chain(draw_input(spec, seed, torch.float64), chain)
    assert chain.macs * 2 == counter.get_total_flops()
    tensors = [t for stage in chain.stages for t in (stage.weight, stage.bias) if t is not None]
    assert chain.params == sum(t.numel() for t in tensors)
    assert sum(stage.spec.params for stage in chain.stages) == chain.params - spec.out_channels
    assert all(t.is_contiguous() and t.dtype == torch.float64 for t in tensors)
    assert len({stage.name for stage in chain.stages}) == len(chain.stages)


def check_error_does_not_grow_with_rank(
    method: Decomposition, spec: LayerSpec, seed: int, slack: float
) -> None:
    weight = draw_weight(spec, seed)
    problems = problems_of(weight, spec)
    before = math.inf
    for rank in ranks_upwards(method.rank_limits(spec.per_group)):
        chain = decompose(method, problems, spec, rank, dtype=torch.float64)
        error = relative_error(chain.composed_weight(), weight)
        assert error <= before * (1 + slack) + 1e-12, (rank, error, before)
        before = error
