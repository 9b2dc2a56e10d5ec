"""A method of somebody else's is right under budgets at once, with one rank or two, calibrated or not."""

from dataclasses import dataclass
from typing import ClassVar, final

import pytest
import torch
from torch import Tensor, nn

import fxdecomp
from fxdecomp import decompositions
from fxdecomp.allocation import candidates
from fxdecomp.decompositions import Decomposition, Problem, RankGrid, Spectrum, decompose, problems_of
from fxdecomp.decompositions.tucker2 import Tucker2
from fxdecomp.layers import LayerSpec, StageSpec

SPEC = LayerSpec(16, 24, (3, 3), padding=((1, 1), (1, 1)), input_size=(8, 8))


@final
@dataclass(frozen=True, slots=True)
class FirstFilters(Decomposition):
    """Keeps the first filters and mixes the others of them: far from the best of a rank."""

    name: ClassVar[str] = "first_filters"

    def refusal(self, spec: LayerSpec) -> str | None:
        return None if spec.ndim and not spec.transposed else "it takes convolutions only"

    def rank_limits(self, spec: LayerSpec) -> tuple[int, ...]:
        return (spec.out_channels,)

    def stage_specs(self, spec: LayerSpec, rank: tuple[int, ...]) -> tuple[StageSpec, ...]:
        kept = spec.along(tuple(range(spec.ndim)), spec.in_channels, rank[0])
        return (
            StageSpec("spatial", kept),
            StageSpec("mix", spec.pointwise(rank[0], spec.out_channels, at_output=True)),
        )

    def spectra(self, problem: Problem) -> tuple[Spectrum, ...]:
        return (problem.spectrum(0),)

    def factors(self, problem: Problem, rank: tuple[int, ...]) -> tuple[Tensor, ...]:
        rows = problem.unfold(0)
        mix = torch.linalg.lstsq(rows[: rank[0]].T, rows.T).solution.T
        return problem.weight[: rank[0]], mix.reshape(*mix.shape, *(1,) * problem.spec.ndim)


@final
@dataclass(frozen=True, slots=True)
class TwoRanks(Decomposition):
    """Tucker-2 under another name, of which nothing in the package knows how its errors are estimated."""

    name: ClassVar[str] = "two_ranks"

    def refusal(self, spec: LayerSpec) -> str | None:
        return Tucker2().refusal(spec)

    def rank_limits(self, spec: LayerSpec) -> tuple[int, ...]:
        return Tucker2().rank_limits(spec)

    def stage_specs(self, spec: LayerSpec, rank: tuple[int, ...]) -> tuple[StageSpec, ...]:
        return Tucker2().stage_specs(spec, rank)

    def spectra(self, problem: Problem) -> tuple[Spectrum, ...]:
        return Tucker2().spectra(problem)

    def factors(self, problem: Problem, rank: tuple[int, ...]) -> tuple[Tensor, ...]:
        return Tucker2().factors(problem, rank)


PLUGINS = (FirstFilters(), TwoRanks())


@pytest.fixture(params=PLUGINS, ids=lambda method: method.name)
def plugin(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Decomposition:
    known = (*decompositions.METHODS, request.param)
    for module in (decompositions, candidates):
        monkeypatch.setattr(module, "METHODS", known)
    return request.param


def low_rank_weight() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    left, right, noise = (torch.randn(shape, generator=generator) for shape in ((24, 6), (6, 144), (24, 144)))
    return (left @ right + 0.1 * noise).reshape(SPEC.weight_shape)


def test_what_is_expected_of_a_rank_is_what_it_gives(plugin: Decomposition) -> None:
    weight = low_rank_weight()
    problems = problems_of(weight, SPEC)
    found = plugin.estimates(problems, RankGrid(4))
    assert len(found) >= 4
    for rank, error in found.items():
        rest = weight - decompose(plugin, problems, SPEC, rank, dtype=weight.dtype).composed_weight()
        assert error == pytest.approx(float(rest.square().sum() / weight.square().sum()), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_budget_takes_the_method(plugin: Decomposition, calibrated: bool) -> None:
    model = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1)).eval()
    with torch.no_grad():
        model[0].weight.copy_(low_rank_weight())
    batches = list(torch.randn(4, 8, 16, 8, 8, generator=torch.Generator().manual_seed(1)))
    gm = fxdecomp.trace(model, batches[0])
    policy = fxdecomp.Policy(
        rules=[fxdecomp.Rule("*", plugin.name)], budget=fxdecomp.MACs(0.6), made_up=False
    )
    small = fxdecomp.transform(gm, policy, calibration=batches if calibrated else None)
    report = fxdecomp.report(small)
    assert {each.method for each in report.applied} == {plugin.name}
    assert report.macs_after <= 0.6 * report.macs_before
    again = fxdecomp.transform(
        gm, fxdecomp.Policy.from_plan(report.plan), calibration=batches if calibrated else None
    )
    assert fxdecomp.report(again).plan == report.plan
    with torch.no_grad():
        out, replayed = small(batches[0]), again(batches[0])
    # Factors from lstsq round by where its operands lie in memory; what they compute does not show it.
    assert float((out - replayed).norm() / out.norm()) < 1e-4
