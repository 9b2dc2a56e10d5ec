"""Layers whose weights are parts of one stored tensor."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxdecomp
from tests.nets import FULL, drawn, image, relative_difference


class Halves(nn.Module):
    """Applies the two halves of one weight, which have the same shape, to the two halves of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(16, 8, 3, 3)), nn.Parameter(torch.randn(16))

    def forward(self, x: Tensor) -> Tensor:
        one = F.conv2d(x[:, :8], self.weight[:8], self.bias[:8], padding=1)
        two = F.conv2d(x[:, 8:], self.weight[8:], self.bias[8:], padding=1)
        return torch.cat((one, two), 1)


@pytest.mark.parametrize("exported", [False, True])
def test_slices_of_one_weight_are_not_one_layer(exported: bool) -> None:
    x = image(2, 16, 9, 9)
    model = drawn(nn.Sequential(Halves(), nn.ReLU(), nn.Conv2d(16, 16, 3)))
    gm = fxdecomp.trace(torch.export.export(model, (x,)) if exported else model, x)
    small = fxdecomp.transform(gm, FULL)
    assert relative_difference(gm, small, x) < 1e-5
    report = fxdecomp.report(small)
    assert [outcome.site for outcome in report.applied] == ["2"]
    assert [outcome.reason for outcome in report.skipped] == [fxdecomp.Reason.TIED_WEIGHT] * 2


def test_the_same_slice_at_two_places_is_one_layer() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(16, 8, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(F.conv2d(x, self.weight[:8], padding=1).relu(), self.weight[:8], padding=1)

    x = image(2, 8, 9, 9)
    gm = fxdecomp.trace(drawn(Twice()), x)
    small = fxdecomp.transform(gm, FULL)
    assert [outcome.calls for outcome in fxdecomp.report(small).applied] == [2]
    assert relative_difference(gm, small, x) < 1e-5
