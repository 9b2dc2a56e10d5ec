import math

import pytest
import torch

from fxdecomp.allocation.candidates import Question, candidates
from fxdecomp.calibration.moments import Moments
from fxdecomp.decompositions import RankGrid, decompose, method_named, problems_of
from fxdecomp.decompositions.cp import CanonicalPolyadic
from fxdecomp.layers import LayerSpec

CONV = LayerSpec(24, 32, (3, 3), padding=((1, 1), (1, 1)), input_size=(8, 8))
GROUPED = LayerSpec(32, 48, (3, 3), padding=((1, 1), (1, 1)), groups=2, input_size=(8, 8))


def decaying_weight(spec: LayerSpec, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(spec.weight_shape, generator=generator)
    basis, values, rest = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    return (basis * values * 0.85 ** torch.arange(len(values)) @ rest).reshape(weight.shape)


def true_error(name: str, spec: LayerSpec, weight: torch.Tensor, rank: tuple[int, ...]) -> float:
    chain = decompose(method_named(name), problems_of(weight, spec), spec, rank, dtype=weight.dtype)
    return float((weight - chain.composed_weight()).square().sum() / weight.square().sum())


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("svd", LayerSpec(40, 56)),
        ("channel_svd", CONV),
        ("spatial_svd", CONV),
        ("channel_svd", GROUPED),
        ("spatial_svd", GROUPED),
    ],
)
def test_closed_forms_are_exact(name: str, spec: LayerSpec) -> None:
    weight = decaying_weight(spec)
    found = method_named(name).estimates(problems_of(weight, spec), RankGrid(4))
    assert len(found) >= 3
    for rank, error in found.items():
        assert error == pytest.approx(true_error(name, spec, weight, rank), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("spec", [CONV, GROUPED])
def test_tucker2_is_the_error_before_alternation(spec: LayerSpec) -> None:
    weight = decaying_weight(spec)
    found = method_named("tucker2").estimates(problems_of(weight, spec), RankGrid(4))
    assert any(p != q for p, q in found)
    for rank, error in found.items():
        true = true_error("tucker2", spec, weight, rank)
        assert true <= error + 1e-6
        assert error <= 1.35 * true + 1e-5


def test_tensor_train_is_an_upper_bound_that_is_not_loose() -> None:
    weight = decaying_weight(CONV)
    found = method_named("tensor_train").estimates(problems_of(weight, CONV), RankGrid(4))
    assert len(found) >= 4
    for rank, error in found.items():
        true = true_error("tensor_train", CONV, weight, rank)
        assert true <= error + 1e-6
        assert error <= 3 * true + 1e-5


def test_cp_is_never_better_than_its_full_iteration_by_much() -> None:
    weight = decaying_weight(CONV)
    for rank, error in method_named("cp3").estimates(problems_of(weight, CONV), RankGrid(8)).items():
        assert true_error("cp3", CONV, weight, rank) <= error * 1.01 + 1e-6


def correlated_moments(spec: LayerSpec) -> tuple[Moments, ...]:
    """Of patches whose neighbouring positions are alike, and whose channels are unequal and mixed."""
    generator = torch.Generator().manual_seed(1)
    inputs, taps = spec.in_channels // spec.groups, math.prod(spec.kernel)
    found = []
    for _ in range(spec.groups):
        mixed = torch.randn(inputs, inputs, generator=generator) * 0.8 ** torch.arange(inputs)
        near = 0.7 * torch.ones(taps, taps) + 0.3 * torch.eye(taps)
        covariance = torch.kron(mixed @ mixed.T, near).double()
        found.append(Moments(covariance, torch.zeros(inputs * taps, dtype=torch.float64), 10_000))
    return tuple(found)


@pytest.mark.parametrize("spec", [CONV, GROUPED])
@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("channel_svd", 0.999, 1.001),
        ("spatial_svd", 0.8, 1.4),
        ("tucker2", 0.94, 2.1),
        ("tensor_train", 0.7, 4.2),
        ("cp3", 0.6, 2.6),
    ],
)
def test_calibrated_errors_of_all_methods_are_those_of_the_output(
    name: str, low: float, high: float, spec: LayerSpec
) -> None:
    weight = decaying_weight(spec)
    problems = problems_of(weight, spec, correlated_moments(spec))
    method = method_named(name)
    for rank, estimated in method.estimates(problems, RankGrid(8)).items():
        error = estimated / method.alternation_gain
        chain = decompose(method, problems, spec, rank, dtype=weight.dtype)
        rest = (weight - chain.composed_weight()).flatten(1).chunk(spec.groups)
        pairs = list(zip(problems, rest, weight.flatten(1).chunk(spec.groups), strict=True))
        lost, whole = (
            sum(problem.moments.output_variance(pair[index]) for problem, *pair in pairs) for index in (0, 1)
        )
        true = lost / whole
        assert low * true - 1e-5 <= error <= high * true + 1e-4, rank


@pytest.mark.parametrize("spec", [CONV, GROUPED])
def test_a_fit_to_inputs_is_estimated_at_the_ranks_that_save_something(spec: LayerSpec) -> None:
    method = method_named("spatial_svd")
    found = method.estimates(problems_of(decaying_weight(spec), spec, correlated_moments(spec)), RankGrid(4))
    largest = max(rank for (rank,) in found)
    assert len(found) > 3
    assert method.form(spec, (largest,)).macs < spec.macs <= method.form(spec, (largest + 4,)).macs


@pytest.mark.parametrize(
    ("limit", "step", "first"), [(64, 8, 8), (512, 16, 16), (20, 8, 4), (3, 8, 1), (1, 8, 1)]
)
def test_ranks_are_aligned_where_the_layer_is_large_enough(limit: int, step: int, first: int) -> None:
    grid = RankGrid(step).along(limit, 16)
    assert all(rank < limit for rank in grid)
    assert len(grid) <= 16
    assert not grid or grid[0] == first
    assert all(rank % first == 0 for rank in grid)


def test_candidates_are_a_frontier_behind_the_dense_layer() -> None:
    weight = decaying_weight(CONV)
    found = candidates(Question("conv", (CONV,), weight, 32, "auto", 4))
    assert found[0].method is None
    assert (found[0].error, found[0].macs, found[0].params) == (0.0, CONV.macs, CONV.params + 32)
    costs, errors = [each.macs for each in found], [each.error for each in found]
    assert costs == sorted(set(costs), reverse=True)
    assert errors == sorted(set(errors))
    assert len({each.method for each in found[1:]}) >= 2


def test_one_method_and_a_floor_restrict_the_candidates() -> None:
    weight = decaying_weight(CONV)
    found = candidates(Question("conv", (CONV,), weight, 0, "tucker2", 4, floor=0.4))
    assert {each.method for each in found[1:]} == {"tucker2"}
    assert all(each.macs >= 0.4 * CONV.macs for each in found)
    assert len(found) > 3


def test_a_layer_at_two_sizes_counts_both() -> None:
    weight = decaying_weight(CONV)
    other = LayerSpec(24, 32, (3, 3), padding=((1, 1), (1, 1)), input_size=(16, 16))
    one = candidates(Question("conv", (CONV,), weight, 0, "channel_svd", 4))
    two = candidates(Question("conv", (CONV, other), weight, 0, "channel_svd", 4))
    assert [(each.macs * 5, each.params) for each in one] == [(each.macs, each.params) for each in two]


@pytest.mark.parametrize(
    ("channels", "method", "found"),
    [(248, "auto", {"cp", "cp3"}), (264, "auto", {"cp3"}), (264, "cp", {"cp"})],
)
def test_large_kernels_are_iterated_too(
    monkeypatch: pytest.MonkeyPatch, channels: int, method: str, found: set[str]
) -> None:
    monkeypatch.setattr(CanonicalPolyadic, "_reached", lambda *_: 0.0)
    spec = LayerSpec(channels, channels, (3, 3), input_size=(9, 9))
    menu = candidates(Question("x", (spec,), torch.randn(spec.weight_shape), 0, method, 64))
    considered = {each.method for each in menu if each.method is not None}
    assert considered & {"cp", "cp3"} <= found
    assert considered & found


@pytest.mark.parametrize(("rank", "sweeps"), [(128, 15), (768, 9), (4096, 8)])
def test_large_kernels_at_high_ranks_are_swept_less(
    monkeypatch: pytest.MonkeyPatch, rank: int, sweeps: int
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(CanonicalPolyadic, "_reached", lambda self, *_: taken.append(self.iterations) or 0.0)
    spec = LayerSpec(512, 512, (3, 3), input_size=(9, 9))
    method = method_named("cp3")
    assert isinstance(method, CanonicalPolyadic)
    method._soon(problems_of(torch.zeros(spec.weight_shape), spec), (rank,))
    assert taken == [sweeps]


def test_very_large_kernels_are_iterated_at_the_ranks_that_end_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CanonicalPolyadic, "_reached", lambda *_: 0.0)
    wide, wider = (LayerSpec(n, 1024, (3, 3), input_size=(9, 9)) for n in (256, 2048))
    found = {
        spec.in_channels: [
            rank
            for (rank,) in method_named("cp3").estimates(
                problems_of(torch.empty(spec.weight_shape), spec), RankGrid(16)
            )
        ]
        for spec in (wide, wider)
    }
    assert found == {256: [256, 512], 2048: [512]}
