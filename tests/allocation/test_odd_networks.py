"""Budgets and searches of networks whose outputs, layers or inputs are not those of every day."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxdecomp
from fxdecomp import MACs, Params, Policy, PolicyError, Rule
from fxdecomp.allocation.sensitivity import measure_sensitivity
from fxdecomp.calibration import Calibration
from fxdecomp.errors import BudgetError
from fxdecomp.sites import survey
from tests.nets import FULL, drawn, image, relative_difference


class Ending(nn.Module):
    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(32, 32) for _ in range(3)))
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.layers(x).tanh())


class TwoSizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.conv(x).mean() + self.conv(y).mean()


def test_a_network_that_gives_labels_needs_a_metric() -> None:
    gm, x = fxdecomp.trace(drawn(Ending(lambda y: y.argmax(1))), image(64, 32)), image(64, 32)
    with pytest.raises(PolicyError, match="no floating-point output to compare; give search a metric="):
        fxdecomp.search(gm, x, max_drop=0.01, evaluations=1, calibration=[x])
    small = fxdecomp.transform(gm, Policy(method="svd", budget=MACs(0.6)), calibration=[x])
    assert len(fxdecomp.report(small).applied) == 3  # all alike, as without calibration


def test_masked_outputs_do_not_count() -> None:
    gm, x = (
        fxdecomp.trace(drawn(Ending(lambda y: y.masked_fill(y < 0, -math.inf))), image(64, 32)),
        image(64, 32),
    )
    small = fxdecomp.transform(gm, Policy(method="svd", budget=MACs(0.6)), calibration=[x])
    assert 0.5 < fxdecomp.report(small).macs_after / fxdecomp.report(small).macs_before <= 0.6
    found = fxdecomp.search(gm, x, max_drop=0.5, evaluations=1, calibration=[x])
    assert all(math.isfinite(trial.metric) for trial in found.trials)


def test_an_output_that_does_not_vary_is_compared_by_its_size() -> None:
    gm = fxdecomp.trace(drawn(nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 1))), image(1, 32))
    found = fxdecomp.search(gm, image(1, 32), max_drop=0.9, evaluations=1)
    assert all(abs(trial.metric) < 100 for trial in found.trials)


def test_a_dead_channel_does_not_make_a_layer_worthless() -> None:
    model = drawn(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)))
    gm, x = fxdecomp.trace(model, image(2, 16, 12, 12)), [image(8, 16, 12, 12)]
    alive = measure_sensitivity(gm, survey(gm).sites, x)
    with torch.no_grad():
        gm.get_parameter("0.weight")[3], gm.get_parameter("0.bias")[3] = 0, 0
    dead = measure_sensitivity(gm, survey(gm).sites, x)
    assert dead["0"] > 0.3 * alive["0"]


def test_a_layer_on_two_sizes_whose_axes_would_go_in_other_orders_is_left_alone() -> None:
    model, inputs = drawn(TwoSizes()), (image(1, 16, 8, 20), image(1, 16, 20, 8))
    gm = fxdecomp.trace(model, inputs)
    for policy in (Policy(method="cp", rank=16), Policy(method="spatial_svd", rank=4)):
        (row,) = fxdecomp.report(fxdecomp.transform(gm, policy)).skipped
        assert "its calls on inputs of other sizes want the axes in another order" in row.sentence
    small = fxdecomp.transform(gm, Policy(made_up=False, budget=MACs(0.5)))
    assert fxdecomp.report(small).applied[0].method in ("tucker2", "channel_svd")
    full = fxdecomp.transform(gm, FULL)
    assert relative_difference(model, full, inputs) < 1e-5


def test_a_budget_of_parameters_counts_the_biases_that_fitted_chains_have() -> None:
    model = drawn(nn.Sequential(*(nn.Linear(32, 32, bias=False) for _ in range(6))))
    gm, x = fxdecomp.trace(model, image(2, 32)), image(256, 32)
    small = fxdecomp.transform(gm, Policy(method="svd", budget=Params(0.5), multiple_of=1), calibration=[x])
    assert sum(parameter.numel() for parameter in small.parameters()) <= 0.5 * 6 * 32 * 32


def test_a_budget_that_rules_leave_nothing_to_is_met_or_refused() -> None:
    gm = fxdecomp.trace(drawn(nn.Sequential(*(nn.Linear(32, 32) for _ in range(3)))), image(2, 32))
    with pytest.raises(BudgetError, match="cannot be met"):
        fxdecomp.transform(
            gm, Policy(made_up=False, budget=MACs(0.2), rules=[Rule("*", method="svd", rank=14)])
        )
    met = fxdecomp.transform(
        gm, Policy(made_up=False, budget=MACs(0.9), rules=[Rule("*", method="svd", rank=14)])
    )
    assert len(fxdecomp.report(met).applied) == 3


def test_what_trains_is_kept_through_a_refit() -> None:
    gm = fxdecomp.trace(drawn(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))), image(2, 32))
    for name, parameter in gm.named_parameters():
        parameter.requires_grad_("bias" in name)
    small = fxdecomp.transform(gm, Policy(method="svd", rank=8), calibration=[image(256, 32)])
    assert {name for name, p in small.named_parameters() if p.requires_grad} == {
        "0.pointwise_out.bias",
        "2.pointwise_out.bias",
    }


def test_in_inference_mode_the_result_trains_all_the_same() -> None:
    gm = fxdecomp.trace(drawn(nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())), image(2, 8, 8, 8))
    with torch.inference_mode():
        small = fxdecomp.transform(gm, Policy(method="tucker2", rank=0.5), calibration=[image(16, 8, 8, 8)])
    small(image(2, 8, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


@pytest.mark.parametrize("method", ["spatial_svd", "tensor_train", "cp", "cp3"])
def test_grey_images_do_not_blow_the_stages_up(method: str) -> None:
    model = drawn(nn.Sequential(nn.Conv2d(3, 16, 3, padding=1)))
    x = image(8, 1, 12, 12).expand(8, 3, 12, 12).contiguous()
    gm = fxdecomp.trace(model, x)
    policy = Policy(method=method, rank=2, require_saving=False)
    fitted = fxdecomp.transform(gm, policy, calibration=Calibration([x], refit=False))
    blind = fxdecomp.transform(gm, policy)
    wanted = gm(x)
    assert (fitted(x) - wanted).square().sum() <= (blind(x) - wanted).square().sum()
    assert fxdecomp.report(fitted).applied[0].relative_error < 1.5
