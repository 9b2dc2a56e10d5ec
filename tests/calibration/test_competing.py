"""A fit to few inputs is returned only where it beats the weights alone on held-out inputs."""

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import fxdecomp
from fxdecomp import MACs, Policy
from fxdecomp.calibration import Calibration
from fxdecomp.graphs.records import Record
from fxdecomp.passes import RefitChains
from tests.nets import drawn, image, small_vgg

X = image(16, 3, 16, 16)
POLICY = Policy("tucker2", 0.5)


@pytest.fixture(scope="module")
def gm() -> GraphModule:
    return fxdecomp.trace(small_vgg(), X[:1])


def notes(small: GraphModule) -> str:
    return " ".join(fxdecomp.report(small).record.notes)


@pytest.mark.parametrize("count", [1, 3])
def test_fewer_than_four_inputs_are_not_fitted_to(gm: GraphModule, count: int) -> None:
    small = fxdecomp.transform(gm, POLICY, calibration=[X[:count]])
    plain = fxdecomp.transform(gm, POLICY)
    for (name, a), b in zip(small.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    quality = fxdecomp.report(small).quality
    assert quality.count == count
    assert quality.held_out
    assert "too small to be fitted to (16 inputs and more help)" in quality.inputs


def test_the_better_of_both_on_held_out_inputs_is_returned() -> None:
    model = drawn(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64)))
    gm = fxdecomp.trace(model, image(1, 32))
    x = image(15, 32)
    narrow, wide = (x * (torch.arange(32) < 2))[:13], x * (torch.arange(32) >= 2)
    far = [*narrow.split(1), *wide[13:].split(1)]  # those that are held out look the other way
    small = fxdecomp.transform(gm, Policy("svd", 8), calibration=far)
    assert "what the weights alone give was chosen on held-out calibration, 2 inputs" in notes(small)
    assert all(each.output_error is None for each in fxdecomp.report(small).applied)
    good = fxdecomp.transform(gm, Policy("svd", 8), calibration=list(narrow.split(1)))
    assert "the fit to the calibration was chosen on held-out calibration, 2 inputs" in notes(good)
    assert fxdecomp.report(good).quality.agreement > 0.3


def test_a_good_fit_to_many_inputs_is_not_doubted() -> None:
    model = drawn(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)))
    gm = fxdecomp.trace(model, image(1, 32))
    many = list(image(80, 32).split(8))
    assert "was chosen" not in notes(
        fxdecomp.transform(gm, Policy("svd", 31, require_saving=False), calibration=many)
    )
    assert "was chosen" in notes(fxdecomp.transform(gm, Policy("svd", 2), calibration=many))


def test_a_fit_that_ruins_what_the_weights_alone_leave_dense_is_beaten() -> None:
    """The only layer that the method takes is the head."""
    body = (nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3, stride=4), nn.ReLU())
    model = drawn(nn.Sequential(*body, nn.Flatten(), nn.Linear(72, 10)))
    gm = fxdecomp.trace(model, image(2, 3, 16, 16))
    calibration = list(image(64, 3, 16, 16).split(8))
    small = fxdecomp.transform(gm, Policy("svd", 0.3), calibration=calibration)
    assert not fxdecomp.report(small).applied
    assert "what the weights alone give was chosen on held-out calibration" in notes(small)
    assert fxdecomp.report(small).quality.relative_error < 1e-5
    named = fxdecomp.transform(gm, Policy(rules=[fxdecomp.Rule("5", "svd", 0.3)]), calibration=calibration)
    assert [row.site for row in fxdecomp.report(named).applied] == ["5"]


def test_a_budget_that_only_the_fit_can_meet_is_met() -> None:
    model = drawn(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 256)))
    gm = fxdecomp.trace(model, image(1, 32))
    with pytest.raises(fxdecomp.PolicyError, match="cannot be met"):
        fxdecomp.transform(gm, Policy(budget=MACs(0.5)))
    small = fxdecomp.transform(gm, Policy(budget=MACs(0.5)), calibration=list(image(32, 32).split(4)))
    assert fxdecomp.report(small).macs_after <= 0.5 * fxdecomp.report(small).macs_before


def test_a_refit_that_does_harm_on_held_out_inputs_is_taken_back(
    gm: GraphModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    def harmful(self: RefitChains, gm: GraphModule, record: Record) -> Record:
        with torch.no_grad():
            for name, value in list(gm.named_parameters()):
                place, _, own = name.rpartition(".")
                setattr(gm.get_submodule(place), own, nn.Parameter(2 * value))
        return record

    monkeypatch.setattr(RefitChains, "call", harmful)
    few = list(image(16, 3, 16, 16).split(4))
    small = fxdecomp.transform(gm, POLICY, calibration=few)
    assert "the fit before its refit was chosen on held-out calibration, 4 inputs" in notes(small)
    before = fxdecomp.transform(gm, POLICY, calibration=Calibration(few, refit=False))
    assert fxdecomp.report(small).quality.relative_error <= fxdecomp.report(before).quality.relative_error
