"""Layers whose attributes, forwards or weights are not what their class says."""

import types
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxdecomp
from fxdecomp import Policy, Reason, Rule
from tests.nets import FULL, drawn, image, relative_difference

X = image(4, 8)


class Writing(nn.Module):
    """Changes its weight, or one that is computed from it, in the graph."""

    def __init__(self, write: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.w, self.write = nn.Linear(8, 8), nn.Parameter(torch.empty(8, 8), False), write

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.fc(x), self.write(self.w))


class Colliding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base, self.linear = nn.Parameter(torch.empty(8, 8)), nn.Linear(8, 4)
        self.fc, self.fc_weight = nn.Linear(8, 8), nn.Parameter(torch.empty(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(self.fc(x), self.fc_weight)
        return self.linear(F.linear(x, self.base + self.base.T).relu())


def clamped_aside(weight: Tensor) -> Tensor:
    weight.clamp_(-0.01, 0.01)
    return weight


def test_a_forward_that_was_put_on_one_module_is_kept() -> None:
    model = drawn(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3))).eval()
    model[1].forward = lambda x: x * 5
    seamless = lambda self, x, weight, bias: F.conv2d(F.pad(x, (1,) * 4, "circular"), weight, bias)  # noqa: E731
    model[2]._conv_forward = types.MethodType(seamless, model[2])
    x = image(2, 3, 8, 8)
    small = fxdecomp.transform(fxdecomp.trace(model, x), FULL)
    assert relative_difference(model, small, x) < 1e-5
    assert [outcome.site for outcome in fxdecomp.report(small).applied] == ["0", "2"]


def test_layers_that_were_pruned_by_hand_have_the_sizes_of_their_weights() -> None:
    layers = [nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 8, 3), nn.Flatten(), nn.Linear(512, 4)]
    model = drawn(nn.Sequential(*layers))
    for index, kept in [(0, slice(5)), (1, (slice(5), slice(6))), (3, (..., slice(384)))]:
        model[index].weight = nn.Parameter(model[index].weight[kept].detach().clone())
    for index, count in [(0, 5), (1, 6)]:
        model[index].bias = nn.Parameter(model[index].bias[:count].detach().clone())
    x = image(2, 3, 8, 8)
    small = fxdecomp.transform(fxdecomp.trace(model, x), FULL)
    assert relative_difference(model, small, x) < 1e-5
    layers_told = [outcome.layer for outcome in fxdecomp.report(small).applied]
    assert layers_told == ["Conv2d 3->5, 3x3", "ConvTranspose2d 5->6, 3x3", "Linear 384->4"]


@pytest.mark.parametrize("write", [lambda w: w.mul_(0.5), clamped_aside, lambda w: torch.mul(w, 0.5, out=w)])
def test_a_weight_that_the_graph_changes_is_left_alone(
    write: Callable[[Tensor], Tensor],
) -> None:
    gm = fx.symbolic_trace(drawn(Writing(write)))
    gm = fxdecomp.trace(gm, X)
    before = gm.get_parameter("w").clone()
    small = fxdecomp.transform(gm, FULL)
    assert [(o.site, o.reason) for o in fxdecomp.report(small).skipped] == [
        ("linear", Reason.COMPUTED_WEIGHT)
    ]
    fxdecomp.report(gm)
    assert torch.equal(gm.get_parameter("w"), before)
    assert relative_difference(gm, small, X) < 1e-5


@pytest.mark.parametrize(
    "draw",
    [
        F.gumbel_softmax,
        lambda w: w + torch.empty_like(w).uniform_(),
        lambda w: F.rrelu(w, training=True),
        lambda w: F.scaled_dot_product_attention(w, w, w, dropout_p=0.5),
    ],
)
def test_a_weight_that_is_drawn_anew_is_left_alone(draw: Callable[[Tensor], Tensor]) -> None:
    small = fxdecomp.transform(fxdecomp.trace(fx.symbolic_trace(drawn(Writing(draw))), X), FULL)
    assert [(o.site, o.reason) for o in fxdecomp.report(small).skipped] == [
        ("linear", Reason.COMPUTED_WEIGHT)
    ]


def test_modules_keep_their_names_beside_functional_layers() -> None:
    model = drawn(Colliding())
    small = fxdecomp.transform(fxdecomp.trace(model, X), Policy(rules=[Rule("*", "svd", 1)]))
    assert {o.site for o in fxdecomp.report(small).applied} == {"fc", "linear", "fc_linear", "base"}
    assert {name for name, _ in small.named_modules()} >= {"fc.pointwise_in", "linear.pointwise_in"}
    full = fxdecomp.transform(fxdecomp.trace(model, X), FULL)
    assert relative_difference(model, full, X) < 1e-5


@pytest.mark.parametrize("size", [None, (18, 18)])
def test_a_layer_with_and_without_an_output_size_is_listed_once(size: tuple[int, int] | None) -> None:
    class Upsampling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1 if size else 0)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(x, size).mean() + self.up(x).sum()

    gm = fxdecomp.trace(drawn(Upsampling()), image(1, 3, 8, 8))
    reason = Reason.OUTPUT_SIZE if size else Reason.NOT_TRANSFORMED
    assert [(o.site, o.reason) for o in fxdecomp.report(gm).skipped] == [("up", reason)]


def test_a_product_by_the_operator_is_a_layer() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.empty(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.w

    model = drawn(Product())
    small = fxdecomp.transform(fxdecomp.trace(model, X), FULL)
    assert len(fxdecomp.report(small).applied) == 1
    assert relative_difference(model, small, X) < 1e-5
