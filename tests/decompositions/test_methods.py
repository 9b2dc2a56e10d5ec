"""The shared battery over every method and drawn geometries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxdecomp.decompositions import (
    METHODS,
    Decomposition,
    Problem,
    decompose,
    method_for,
    method_named,
    problems_of,
)
from fxdecomp.decompositions.cp import CP, CanonicalPolyadic
from fxdecomp.decompositions.svd import SVD
from fxdecomp.decompositions.tucker2 import Tucker2
from fxdecomp.errors import PolicyError
from fxdecomp.layers import LayerSpec, StageSpec
from tests.decompositions import battery
from tests.decompositions.layers_in_torch import draw_weight, geometries, relative_error

SEEDS = st.integers(0, 2**16)
SHARES = st.sampled_from((0.0, 0.3, 0.6, 1.0))
# Geometry does not depend on how far an iteration is taken.
HASTY = [replace(m, iterations=3) if isinstance(m, CanonicalPolyadic) else m for m in METHODS]
EXACT = [method for method in METHODS if not isinstance(method, CanonicalPolyadic)]

STRIDED = LayerSpec(
    6,
    4,
    kernel=(3, 2),
    stride=(2, 3),
    padding=((1, 0), (2, 2)),
    dilation=(2, 1),
    input_size=(9, 8),
)
TRANSPOSED = LayerSpec(
    4,
    6,
    kernel=(4, 3),
    stride=(2, 1),
    padding=((1, 1), (1, 1)),
    groups=2,
    transposed=True,
    output_padding=(1, 0),
    input_size=(5, 6),
    positions=2,
)
ROW = LayerSpec(3, 7, kernel=(1, 3), stride=(2, 2), padding=((0, 0), (1, 1)), input_size=(6, 6))
POINTWISE = LayerSpec(5, 7, kernel=(1, 1), stride=(2, 2), input_size=(5, 5))
LINEAR = LayerSpec(7, 3, positions=4)


def every(methods: list[Decomposition]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("method", methods, ids=lambda method: method.name)


def adapted(method: Decomposition, spec: LayerSpec) -> LayerSpec:
    """The drawn geometry, made pointwise for the method that takes nothing else."""
    if method.name == "svd":
        ones, none = (1,) * spec.ndim, ((0, 0),) * spec.ndim
        spec = replace(spec, kernel=ones, padding=none, padding_mode="zeros")
    assume(method.refusal(spec) is None)
    return spec


@every(EXACT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@settings(max_examples=25, deadline=None)
@given(spec=geometries(), seed=SEEDS)
@example(spec=STRIDED, seed=0)
@example(spec=TRANSPOSED, seed=0)
@example(spec=ROW, seed=0)
@example(spec=POINTWISE, seed=0)
def test_full_rank_is_exact(method: Decomposition, dtype: torch.dtype, spec: LayerSpec, seed: int) -> None:
    battery.check_full_rank_is_exact(method, adapted(method, spec), seed, dtype)


@every(HASTY)
@settings(max_examples=25, deadline=None)
@given(spec=geometries(), seed=SEEDS, share=SHARES)
@example(spec=STRIDED, seed=0, share=0.6)
@example(spec=TRANSPOSED, seed=0, share=0.6)
@example(spec=ROW, seed=0, share=0.6)
@example(spec=POINTWISE, seed=0, share=0.6)
def test_the_chain_is_the_composed_layer(
    method: Decomposition, spec: LayerSpec, seed: int, share: float
) -> None:
    battery.check_chain_is_the_composed_layer(method, adapted(method, spec), seed, share)


@every(HASTY)
@settings(max_examples=25, deadline=None)
@given(spec=geometries(), seed=SEEDS, share=SHARES)
@example(spec=TRANSPOSED, seed=0, share=0.6)
def test_costs_are_the_measured_ones(method: Decomposition, spec: LayerSpec, seed: int, share: float) -> None:
    battery.check_costs_are_the_measured_ones(method, adapted(method, spec), seed, share)


@every(EXACT)
@settings(max_examples=15, deadline=None)
@given(spec=geometries(), seed=SEEDS)
@example(spec=STRIDED, seed=0)
def test_error_does_not_grow_with_rank(method: Decomposition, spec: LayerSpec, seed: int) -> None:
    spec = adapted(method, spec)
    battery.check_error_does_not_grow_with_rank(method, spec, seed, method.rise)


@pytest.mark.parametrize("name", ["cp", "cp3"])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 3), (2, 2), (5,), (2, 3, 2)], ids=str)
def test_cp_error_falls_with_rank_to_nothing(name: str, kernel: tuple[int, ...]) -> None:
    spec = LayerSpec(3, 4, kernel=kernel)
    method, weight = method_named(name), draw_weight(spec, 3)
    errors = []
    (limit,) = method.rank_limits(spec)
    for rank in sorted({1, limit // 8, limit // 4, limit // 2, limit} - {0}):
        chain = decompose(method, problems_of(weight, spec), spec, (rank,), dtype=torch.float64)
        errors.append(relative_error(chain.composed_weight(), weight))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6


@dataclass(frozen=True, slots=True)
class Broken(Decomposition):
    """A method with one thing wrong with it, to see the battery fail."""

    name: ClassVar[str] = "broken"
    fault: str = ""

    def refusal(self, spec: LayerSpec) -> str | None:
        return Tucker2().refusal(spec)

    def rank_limits(self, spec: LayerSpec) -> tuple[int, ...]:
        return Tucker2().rank_limits(spec)

    def spectra(self, problem: Problem) -> tuple[object, ...]:
        return Tucker2().spectra(problem)

    def stage_specs(self, spec: LayerSpec, rank: tuple[int, ...]) -> tuple[StageSpec, ...]:
        first, core, last = Tucker2().stage_specs(spec, rank)
        if self.fault == "padding":  # the same output size, other numbers at the border
            shifted = tuple((b + a, 0) for b, a in core.spec.padding)
            core = replace(core, spec=replace(core.spec, padding=shifted))
        return first, core, last

    def factors(self, problem: Problem, rank: tuple[int, ...]) -> tuple[Tensor, ...]:
        if self.fault == "lazy":  # throws the best term away
            first, core, last = Tucker2().factors(problem, rank)
            return first, core, torch.cat((torch.zeros_like(last[:, :1]), last[:, 1:]), dim=1)
        if self.fault == "contrary":  # gets worse as the rank grows
            return tuple(part / rank[0] for part in Tucker2().factors(problem, rank))
        return Tucker2().factors(problem, rank)


PADDED = LayerSpec(4, 6, kernel=(3, 3), padding=((1, 1), (1, 1)), input_size=(6, 6))


def test_the_battery_sees_a_method_that_is_not_exact() -> None:
    battery.check_full_rank_is_exact(Broken(), PADDED, 0, torch.float64)
    with pytest.raises(AssertionError):
        battery.check_full_rank_is_exact(Broken("lazy"), PADDED, 0, torch.float64)


def test_the_battery_sees_a_stage_with_the_wrong_padding() -> None:
    battery.check_chain_is_the_composed_layer(Broken(), PADDED, 0, 0.6)
    with pytest.raises(AssertionError):
        battery.check_chain_is_the_composed_layer(Broken("padding"), PADDED, 0, 0.6)


def test_the_battery_sees_an_error_that_grows() -> None:
    battery.check_error_does_not_grow_with_rank(Broken(), PADDED, 0, 0.01)
    with pytest.raises(AssertionError):
        battery.check_error_does_not_grow_with_rank(Broken("contrary"), PADDED, 0, 0.01)


def test_the_battery_sees_a_wrong_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    battery.check_costs_are_the_measured_ones(Tucker2(), PADDED, 0, 0.6)
    right = LayerSpec.macs.fget
    assert right is not None
    monkeypatch.setattr(LayerSpec, "macs", property(lambda spec: right(spec) + 1))
    with pytest.raises(AssertionError):
        battery.check_costs_are_the_measured_ones(Tucker2(), PADDED, 0, 0.6)


def test_the_cheaper_axis_goes_first() -> None:
    tall = LayerSpec(8, 8, kernel=(3, 3), stride=(1, 2), padding=((1, 1), (1, 1)), input_size=(16, 16))
    names = [stage.name for stage in method_named("spatial_svd").stage_specs(tall, (4,))]
    assert names == ["horizontal", "vertical"]
    wide = replace(tall, stride=(2, 1))
    names = [stage.name for stage in method_named("spatial_svd").stage_specs(wide, (4,))]
    assert names == ["vertical", "horizontal"]
    names = [stage.name for stage in method_named("cp").stage_specs(tall, (4,))]
    assert names == ["pointwise_in", "depthwise_horizontal", "depthwise_vertical", "pointwise_out"]


@pytest.mark.parametrize(
    ("kernel", "names"),
    [
        ((3, 3), ["pointwise_in", "depthwise_vertical", "depthwise_horizontal", "pointwise_out"]),
        ((1, 3), ["pointwise_in", "depthwise", "pointwise_out"]),
        ((3,), ["pointwise_in", "depthwise", "pointwise_out"]),
        (
            (3, 3, 3),
            [
                "pointwise_in",
                "depthwise_depth",
                "depthwise_vertical",
                "depthwise_horizontal",
                "pointwise_out",
            ],
        ),
    ],
    ids=str,
)
def test_names_of_cp_stages(kernel: tuple[int, ...], names: list[str]) -> None:
    spec = LayerSpec(4, 4, kernel=kernel)
    assert [stage.name for stage in CP().stage_specs(spec, (2,))] == names


def test_a_method_is_found_by_name_and_the_nearest_are_offered() -> None:
    assert [method_named(method.name) for method in METHODS] == list(METHODS)
    with pytest.raises(PolicyError, match="tucker2"):
        method_named("tucker")
    with pytest.raises(PolicyError, match="one of svd, tucker2, cp"):
        method_named("zzz")


@every(list(METHODS))
def test_every_method_is_the_svd_on_pointwise_layers(method: Decomposition) -> None:
    assert method_for(method, LINEAR) == SVD()
    assert method_for(method, POINTWISE) == SVD()
    assert method_for(method, STRIDED) is method
    padded = replace(POINTWISE, padding=((1, 1), (0, 0)))
    assert method_for(method, padded) is method


@every(list(METHODS))
def test_refusals_name_a_way_out(method: Decomposition) -> None:
    sentence = method.refusal(STRIDED if method.name == "svd" else LINEAR)
    assert sentence is not None
    assert "use " in sentence
