"""What other ranks cost and lose: the truth for one matrix, a bound for more."""

import pytest
import torch
from torch import nn

import fxdecomp
from fxdecomp.reporting import rank_curves as module
from fxdecomp.reporting.rank_curves import rank_curves
from tests.nets import drawn


def made(method: str, rank: float | int, net: nn.Module, x: torch.Tensor):
    gm = fxdecomp.trace(drawn(net), x)
    return gm, fxdecomp.report(fxdecomp.transform(gm, fxdecomp.Policy(method=method, rank=rank)))


@pytest.mark.parametrize("method", ["svd", "tucker2", "cp", "spatial_svd", "channel_svd", "tensor_train"])
@pytest.mark.parametrize("groups", [1, 2])
def test_no_chain_loses_less_and_one_matrix_loses_just_that(method: str, groups: int) -> None:
    kernel = 1 if method == "svd" else 3
    net = nn.Sequential(nn.Conv2d(32, 48, kernel, groups=groups), nn.BatchNorm2d(48))
    gm, told = made(method, 0.25, net, torch.randn(1, 32, 9, 9))
    (outcome,) = told.applied
    (curve,) = rank_curves(gm, told.outcomes)
    (chosen,) = [point for point in curve.points if point.chosen]
    assert chosen.rank == outcome.rank
    assert chosen.cost == pytest.approx(outcome.macs_after / outcome.macs_before)
    assert chosen.least_error <= outcome.relative_error * (1 + 1e-5)
    if method in {"svd", "spatial_svd", "channel_svd"}:
        assert chosen.least_error == pytest.approx(outcome.relative_error, rel=1e-4)
    assert curve.points[0].least_error > curve.points[-1].least_error
    assert [p.cost for p in curve.points] == sorted(p.cost for p in curve.points)


def test_only_the_layers_that_took_most_have_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 96), nn.Linear(96, 64), nn.Linear(64, 2))
    gm, told = made("svd", 4, net, torch.randn(1, 64))
    monkeypatch.setattr(module, "_MOST_LAYERS", 2)
    assert [curve.site for curve in rank_curves(gm, told.outcomes)] == ["1", "2"]
    monkeypatch.setattr(module, "_MOST_NUMBERS", 5000)
    assert [curve.site for curve in rank_curves(gm, told.outcomes)] == ["1"]
