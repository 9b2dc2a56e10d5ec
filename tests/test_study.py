"""What is computed about a network is computed once, and a study keeps it for the next policy."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import fxdecomp
from fxdecomp import MACs, Policy, PolicyError, studies
from fxdecomp.allocation import site_work
from fxdecomp.decompositions import problem
from tests.nets import drawn, image

BATCHES = list(image(40, 8, 8, 8).split(4))
HALF = Policy(budget=MACs(0.5), multiple_of=2)


def network() -> nn.Module:
    layers = (nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
    return drawn(nn.Sequential(*layers, nn.Conv2d(16, 16, 3, padding=1)))


@pytest.fixture
def gm() -> GraphModule:
    return fxdecomp.trace(network(), BATCHES[0])


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often moments are collected, sensitivities measured, layers factorised, spectra computed."""
    found: Counter[str] = Counter()

    def counted(module: Any, name: str) -> None:
        function = getattr(module, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            found[name] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    counted(site_work, "measure_sensitivity")
    counted(site_work, "output_gradients")
    counted(problem, "whitened_svd")
    counted(studies, "made_up")
    runs = site_work.collect

    def collect(*args: Any, **kwargs: Any) -> Any:
        for each in runs(*args, **kwargs):
            found["collect"] += 1
            yield each

    monkeypatch.setattr(site_work, "collect", collect)
    return found


def assert_same(one: GraphModule, other: GraphModule) -> None:
    state = other.state_dict()
    assert one.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())
    assert fxdecomp.report(one).outcomes == fxdecomp.report(other).outcomes


def test_a_calibrated_budget_runs_over_the_data_once_and_whitens_each_unfolding_once(
    gm: GraphModule, count: Counter[str]
) -> None:
    fxdecomp.transform(gm, HALF, calibration=BATCHES)
    assert count["collect"] == 1
    assert count["measure_sensitivity"] == 1
    layers, unfoldings = 3, 6  # outputs, inputs, and each with one axis of the kernel
    assert 0 < count["whitened_svd"] <= layers * unfoldings


def test_without_room_the_data_are_run_again_and_the_result_is_the_same(count: Counter[str]) -> None:
    gm = fxdecomp.trace(drawn(nn.Sequential(network(), nn.Conv2d(16, 16, 3))), BATCHES[0])
    half = Policy("tucker2", budget=MACs(0.5), multiple_of=2)
    wide = fxdecomp.transform(gm, half, calibration=fxdecomp.calibration.Calibration(BATCHES))
    count.clear()
    narrow = fxdecomp.calibration.Calibration(BATCHES, budget_bytes=4 * 8 * 160**2)  # the largest layer alone
    assert_same(wide, fxdecomp.transform(gm, half, calibration=narrow))
    assert count["collect"] > 1


def test_patches_whose_moments_have_no_room_are_decomposed_by_their_weights(gm: GraphModule) -> None:
    narrow = fxdecomp.calibration.Calibration(BATCHES, budget_bytes=4 * 8 * 100**2)
    policy = Policy(rules=[fxdecomp.Rule("*", "tucker2", 0.5)])
    small = fxdecomp.transform(gm, policy, calibration=narrow, least_agreement=0.0)
    report = fxdecomp.report(small)
    assert {each.site: each.output_error is None for each in report.applied} == {
        "0": False,
        "2": True,
        "4": True,
    }
    assert "moments of 2, 4 do not fit 0.000298 GiB (budget_bytes)" in " ".join(report.record.notes)


def test_a_second_budget_takes_what_is_known(gm: GraphModule, count: Counter[str]) -> None:
    known = fxdecomp.study(gm, BATCHES)
    for share in (0.5, 0.4):
        policy = Policy("channel_svd", budget=MACs(share), multiple_of=2)
        fresh = fxdecomp.transform(gm, policy, calibration=BATCHES)
        count.clear()
        assert_same(fresh, fxdecomp.transform(gm, policy, calibration=known))
    assert not count


def test_a_search_studies_the_network_once(gm: GraphModule, count: Counter[str]) -> None:
    policy = Policy("channel_svd", budget=MACs(0.5), multiple_of=2)
    found = fxdecomp.search(gm, BATCHES[0], calibration=BATCHES, policy=policy, max_drop=0.3, evaluations=3)
    assert len(found.trials) > 2
    assert count["collect"] == 1
    assert count["measure_sensitivity"] == 1
    assert count["output_gradients"] == 1


def test_a_study_of_weights_alone_and_of_few_inputs(gm: GraphModule) -> None:
    for calibration in (None, BATCHES[:3]):
        known = fxdecomp.study(gm, calibration)
        policy = Policy("tucker2", 0.5)
        assert_same(
            fxdecomp.transform(gm, policy, calibration=known),
            fxdecomp.transform(gm, policy, calibration=calibration),
        )


def test_a_study_of_another_or_a_changed_network_is_refused(gm: GraphModule) -> None:
    known = fxdecomp.study(gm, BATCHES)
    with pytest.raises(PolicyError, match="of another network; make one with"):
        fxdecomp.transform(fxdecomp.trace(network(), BATCHES[0]), HALF, calibration=known)
    with torch.no_grad():
        next(gm.parameters()).mul_(2)
    with pytest.raises(PolicyError, match="has changed since it was studied"):
        fxdecomp.transform(gm, HALF, calibration=known)


@pytest.mark.parametrize(("inputs", "method"), [(40, "auto"), (8, "tucker2"), (0, "tucker2")])
def test_a_study_out_of_a_file_runs_over_no_data_and_gives_the_same(
    gm: GraphModule, count: Counter[str], tmp_path: Path, inputs: int, method: str
) -> None:
    batches = BATCHES[: inputs // 4] or None
    known = fxdecomp.study(gm, batches)
    fxdecomp.transform(gm, Policy(method, budget=MACs(0.5), multiple_of=2), calibration=known)
    known.save(tmp_path / "net.study")
    other = Policy(method, budget=MACs(0.45), multiple_of=2)
    fresh = fxdecomp.transform(gm, other, calibration=known)
    count.clear()
    loaded = fxdecomp.study(gm, batches, saved=tmp_path / "net.study")
    assert_same(fresh, fxdecomp.transform(gm, other, calibration=loaded))
    assert not count["collect"] + count["measure_sensitivity"] + count["made_up"] + count["output_gradients"]


@pytest.mark.parametrize("method", ["tucker2", "auto"])
def test_the_chains_of_a_file_are_not_made_again(
    gm: GraphModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    known = fxdecomp.study(gm, BATCHES)
    policy = Policy(method, budget=MACs(0.5), multiple_of=2)
    wanted = fxdecomp.transform(gm, policy, calibration=known)
    known.save(tmp_path / "net.study")

    def made_again(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("fxdecomp.decompositions.factorising.decompose", made_again)
    loaded = fxdecomp.study(gm, BATCHES, saved=tmp_path / "net.study")
    assert_same(wanted, fxdecomp.transform(gm, policy, calibration=loaded))
    with pytest.raises(AssertionError):
        fxdecomp.transform(gm, Policy(method, budget=MACs(0.3), multiple_of=2), calibration=loaded)


def test_a_study_is_refused_for_another_network_or_calibration(gm: GraphModule, tmp_path: Path) -> None:
    path = tmp_path / "net.study"
    fxdecomp.study(gm, BATCHES).save(path)
    with pytest.raises(PolicyError, match="another network or calibration"):
        fxdecomp.study(gm, BATCHES[1:], saved=path)
    other = fxdecomp.trace(drawn(network(), seed=1), BATCHES[0])
    with pytest.raises(PolicyError, match="another network or calibration"):
        fxdecomp.study(other, BATCHES, saved=path)
    with pytest.raises(PolicyError, match="there is no study"):
        fxdecomp.study(gm, BATCHES, saved=tmp_path / "none")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(PolicyError, match="cannot be read"):
        fxdecomp.study(gm, BATCHES, saved=path)


@pytest.mark.parametrize("part", ["inputs", "works"])
def test_a_study_that_lost_a_part_is_refused(gm: GraphModule, tmp_path: Path, part: str) -> None:
    path = tmp_path / "net.study"
    fxdecomp.study(gm, BATCHES).save(path)
    state = torch.load(path, weights_only=True)
    del state[part]
    torch.save(state, path)
    with pytest.raises(PolicyError, match=rf"cannot be read \(KeyError: '{part}'\); make it anew"):
        fxdecomp.study(gm, BATCHES, saved=path)


def test_a_study_that_lost_a_layer_of_the_network_is_refused(gm: GraphModule, tmp_path: Path) -> None:
    path = tmp_path / "net.study"
    known = fxdecomp.study(gm, BATCHES)
    fxdecomp.transform(gm, fxdecomp.Policy(budget=fxdecomp.MACs(0.5)), calibration=known)
    known.save(path)
    state = torch.load(path, weights_only=True)
    layers = state["works"]["work"]["layers"]
    layers["gone"] = layers.pop(next(iter(layers)))
    torch.save(state, path)
    with pytest.raises(PolicyError, match=r"cannot be read \(KeyError: 'gone'\); make it anew"):
        fxdecomp.study(gm, BATCHES, saved=path)
