"""What each chain loses, by itself and behind those before it."""

import pytest
import torch
from torch import nn

import fxdecomp
from fxdecomp.reporting.charts import error_chart
from fxdecomp.reporting.error_path import error_along
from tests.nets import drawn, image


def test_errors_are_those_of_the_chains_outputs() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 4, 1),
    )
    x = image(4, 3, 12, 12)
    gm = fxdecomp.trace(drawn(net), x)
    policy = fxdecomp.Policy(rules=[fxdecomp.Rule("[03]", "tucker2", (8, 2))], require_saving=False)
    small = fxdecomp.transform(gm, policy)
    first, second = error_along(gm, small, fxdecomp.report(small).outcomes, x)
    assert (first.site, second.site) == ("0", "3")
    assert first.own == pytest.approx(first.accumulated)
    with torch.no_grad():
        folded = net[1](net[0](x))
        wanted = net[3](folded.relu())
        chain = small.get_submodule("3")
        stages = nn.Sequential(*(stage for _, stage in chain.named_children()))
        by_itself = stages(folded.relu())
        start = nn.Sequential(*(stage for _, stage in small.get_submodule("0").named_children()))
        behind = stages(start(x).relu())
    power = (wanted - wanted.mean((0, 2, 3), keepdim=True)).square().sum()
    assert second.own == pytest.approx(float((wanted - by_itself).square().sum() / power), rel=1e-3)
    assert second.accumulated == pytest.approx(float((wanted - behind).square().sum() / power), rel=1e-3)
    assert second.own != pytest.approx(second.accumulated, rel=1e-2)
    with torch.no_grad():
        outputs, alone = net(x), net[5](by_itself.relu())
    lost = (outputs - alone).square().sum() / (outputs - outputs.mean()).square().sum()
    assert second.at_outputs == pytest.approx(float(lost), rel=1e-3)
    chart = error_chart((first, second))
    assert [mark.kind for mark in chart.marks] == [f"series-{index // 2}" for index in range(6)]
    assert len(chart.line) == 2
    assert "accumulated" not in chart.marks[3].label


def test_a_layer_that_is_applied_twice_is_left_out() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(32, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.fc(x).relu())

    x = torch.randn(4, 32)
    gm = fxdecomp.trace(drawn(Twice()), x)
    small = fxdecomp.transform(gm, fxdecomp.Policy(rules=[fxdecomp.Rule("*", "svd", 4)]))
    assert len(fxdecomp.report(small).applied) == 1
    assert [e.site for e in error_along(gm, small, fxdecomp.report(small).outcomes, x)] == []
