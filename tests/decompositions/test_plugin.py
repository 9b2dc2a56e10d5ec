"""Methods of another package are right at once: one with one rank, one with two, calibrated or not."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxdecomp
from fxdecomp import Policy, Rule
from fxdecomp.allocation.candidates import methods_of
from fxdecomp.decompositions import (
    Decomposition,
    RankGrid,
    all_methods,
    decompose,
    method_named,
    problems_of,
)
from fxdecomp.export import to_onnx
from fxdecomp.layers import LayerSpec
from tests.decompositions import battery

SPEC = LayerSpec(8, 12, (3, 3), padding=((1, 1), (1, 1)), input_size=(8, 8))
SPECS = (
    SPEC,
    LayerSpec(6, 4, (3, 2), stride=(2, 3), padding=((1, 0), (2, 2)), dilation=(2, 1), input_size=(9, 8)),
    LayerSpec(8, 12, (5,), padding=((2, 2),), groups=2, input_size=(20,)),
)
BATCHES = list(torch.randn(4, 8, 8, 8, 8, generator=torch.Generator().manual_seed(1)))
PACKAGE = Path(__file__).parent.parent / "plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The package of `tests/plugin` in a folder of its own, on the path."""
    folder = tmp_path_factory.mktemp("site")
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--no-compile", "--quiet", "--target")
    subprocess.run([sys.executable, "-m", "pip", "install", *options, folder, PACKAGE], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        all_methods.cache_clear()
        yield folder
    all_methods.cache_clear()
    sys.modules.pop("fxdecomp_examples", None)


@pytest.fixture(params=["first_filters", "two_ranks"])
def plugin(request: pytest.FixtureRequest, installed: Path) -> Decomposition:
    return method_named(request.param)


def low_rank_weight() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    left, right, noise = (torch.randn(shape, generator=generator) for shape in ((12, 3), (3, 72), (12, 72)))
    return (left @ right + 0.1 * noise).reshape(SPEC.weight_shape)


def test_what_is_expected_of_a_rank_is_what_it_gives(plugin: Decomposition) -> None:
    weight = low_rank_weight()
    problems = problems_of(weight, SPEC)
    found = plugin.estimates(problems, RankGrid(4))
    assert len(found) >= 4
    for rank, error in found.items():
        rest = weight - decompose(plugin, problems, SPEC, rank, dtype=weight.dtype).composed_weight()
        assert error == pytest.approx(float(rest.square().sum() / weight.square().sum()), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_it_passes_the_battery(plugin: Decomposition, spec: LayerSpec) -> None:
    battery.check_full_rank_is_exact(plugin, spec, 0, torch.float64)
    battery.check_chain_is_the_composed_layer(plugin, spec, 1, 0.5)
    battery.check_costs_are_the_measured_ones(plugin, spec, 2, 0.5)
    battery.check_error_does_not_grow_with_rank(plugin, spec, 3, plugin.rise)


@pytest.fixture(scope="module")
def gm() -> GraphModule:
    model = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1)).eval()
    with torch.no_grad():
        model[0].weight.copy_(low_rank_weight())
    return fxdecomp.trace(model, BATCHES[0])


def test_a_fixed_rank_is_exported_and_recovered(
    plugin: Decomposition, gm: GraphModule, tmp_path: Path
) -> None:
    small = fxdecomp.transform(gm, Policy(rules=[Rule("*", plugin.name, 0.4)]))
    assert {row.method for row in fxdecomp.report(small).applied} == {plugin.name}
    assert to_onnx(small, BATCHES[0], tmp_path / "small.onnx").max_relative < 1e-4
    recovered = fxdecomp.recover(small, gm, BATCHES, block_steps=8, steps=8)
    before, after = fxdecomp.report(small).quality, fxdecomp.report(recovered).quality
    assert before is not None
    assert after is not None
    assert after.agreement >= before.agreement


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_budget_takes_the_method(plugin: Decomposition, gm: GraphModule, calibrated: bool) -> None:
    policy = Policy(rules=[Rule("*", plugin.name)], budget=fxdecomp.MACs(0.6), made_up=False)
    calibration = BATCHES if calibrated else None
    small = fxdecomp.transform(gm, policy, calibration=calibration)
    report = fxdecomp.report(small)
    assert {each.method for each in report.applied} == {plugin.name}
    assert report.macs_after <= 0.6 * report.macs_before
    assert calibrated == any("chains were refitted" in note for note in report.record.notes)
    again = fxdecomp.transform(gm, Policy.from_plan(report.plan), calibration=calibration)
    assert fxdecomp.report(again).plan == report.plan
    with torch.no_grad():
        out, replayed = small(BATCHES[0]), again(BATCHES[0])
    # Factors from lstsq round by where its operands lie in memory; what they compute does not show it.
    assert float((out - replayed).norm() / out.norm()) < 1e-4


def test_a_budget_without_a_method_weighs_it_too(plugin: Decomposition) -> None:
    assert plugin in methods_of("auto", SPEC)


def test_what_cannot_be_a_method_is_left_out_with_a_warning(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken-1.dist-info").mkdir()
    (tmp_path / "broken-1.dist-info" / "METADATA").write_text("Name: broken\nVersion: 1\n")
    (tmp_path / "broken-1.dist-info" / "entry_points.txt").write_text(
        "[fxdecomp.methods]\n"
        "absent = no_such_module_of_methods:Method\n"
        "number = builtins:int\n"
        "second = fxdecomp.decompositions.svd:SVD\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    all_methods.cache_clear()
    names = [method.name for method in all_methods()]
    all_methods.cache_clear()
    assert names[-2:] == ["first_filters", "two_ranks"]
    assert len(set(names)) == len(names)
    absent, number, second = (record.getMessage() for record in caplog.records)
    assert "absent (no_such_module_of_methods:Method) is left out: ModuleNotFoundError" in absent
    assert "number (builtins:int) is left out: it is no Decomposition" in number
    assert "there is another method 'svd'" in second
