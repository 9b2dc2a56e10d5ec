"""Replacing a layer leaves alone what is not the layer's own: modules and tensors beside it or inside it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxdecomp
from tests.nets import FULL, drawn, image


class CoreBeside(nn.Module):
    """The block's own weight gives a site of the block's name; its stage would be called `core` too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(8, 8, 3, 3))
        self.core = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.core(F.relu(F.conv2d(x, self.weight, padding=1)))


class NormBeside(nn.Module):
    """Folded, the block's own weight would take the block's place, and the Linear with it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(8, 8, 3, 3))
        self.bn = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.bn(F.conv2d(x, self.weight)).mean((2, 3)))


class BiasUsedAgain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + x * self.conv.bias.abs().view(-1, 1, 1)


class BufferOnLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.conv.register_buffer("mask", torch.ones(8, 1, 1).mul(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x * self.conv.mask)


class NormUsedAgain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3)
        self.bn = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) * self.bn.weight.abs().view(-1, 1, 1) + self.conv.bias.view(-1, 1, 1)


@pytest.mark.parametrize("make", [CoreBeside, NormBeside, BiasUsedAgain, BufferOnLayer, NormUsedAgain])
@pytest.mark.parametrize("exported", [False, True])
def test_what_others_use_stays(make: Callable[[], nn.Module], exported: bool) -> None:
    model, x = drawn(nn.Sequential(make())).double(), image(2, 8, 6, 6).double()
    gm = fxdecomp.trace(torch.export.export(model, (x,)) if exported else model, x)
    small = fxdecomp.transform(gm, FULL)
    layers = [row for row in fxdecomp.report(gm).outcomes if row.reason is fxdecomp.Reason.NOT_TRANSFORMED]
    assert len(fxdecomp.report(small).applied) == len(layers)
    assert (small(x) - model(x)).abs().max() < 1e-9 * model(x).abs().max()
    assert fxdecomp.graph_diff(small, fxdecomp.transform(small, FULL)) == ""


def test_nothing_else_of_a_replaced_layer_is_kept() -> None:
    model = drawn(nn.Sequential(BiasUsedAgain()))
    small = fxdecomp.transform(fxdecomp.trace(model, image(2, 8, 6, 6)), FULL)
    kept = [name for name in small.state_dict() if "chain" not in name]
    assert kept == ["0.conv.bias"]


class DomainNorms(nn.Module):
    """One layer at two places, behind each a BatchNorm with a slice of the same statistics."""

    def __init__(self, eps: tuple[float, float] = (1e-5, 1e-5)) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3)
        self.register_buffer("mean", image(2, 8))
        self.register_buffer("var", image(2, 8, seed=2).abs() + 0.5)
        self.eps = eps

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = self.conv(a), self.conv(b)
        second = 1 if self.eps[0] == self.eps[1] else 0
        a = F.batch_norm(a, self.mean[0], self.var[0], eps=self.eps[0])
        return a + F.batch_norm(b, self.mean[second], self.var[second], eps=self.eps[1])


@pytest.mark.parametrize("eps", [(1e-5, 1e-5), (1e-5, 1.0)])
def test_norms_on_slices_or_with_another_eps_are_not_the_same(eps: tuple[float, float]) -> None:
    model = drawn(DomainNorms(eps)).double()
    inputs = (image(2, 8, 6, 6).double(), image(2, 8, 6, 6, seed=3).double())
    gm = fxdecomp.trace(torch.export.export(model, inputs), inputs)
    small = fxdecomp.transform(gm, FULL)
    assert (small(*inputs) - model(*inputs)).abs().max() < 1e-9
    reasons = {fold.reason for fold in fxdecomp.report(small).record.folds}
    assert reasons == {"conv is applied at 2 places, not all followed by this BatchNorm"}


class NormAndRelu(nn.BatchNorm2d):
    """A leaf in the graph of a tracer that is told so."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch gives it
        return super().forward(input).relu()


def leaves_alone_its_norms(model: nn.Module) -> fx.GraphModule:
    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return not isinstance(m, nn.Sequential)

    return fx.GraphModule(model, Tracer().trace(model))


def hooked_norm(kind: str) -> nn.Module:
    norm = nn.BatchNorm2d(8)
    if kind == "forward":
        norm.register_forward_hook(lambda _, __, output: output * 3)
    elif kind == "forward_pre":
        norm.register_forward_pre_hook(lambda _, args: (args[0] * 3,))
    else:
        norm.register_full_backward_pre_hook(lambda _, grads: grads)
    return norm


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        (NormAndRelu(8), "its forward is not torch's own"),
        (hooked_norm("forward"), "it carries hooks"),
        (hooked_norm("forward_pre"), "it carries hooks"),
        (hooked_norm("backward_pre"), "it carries hooks"),
    ],
)
def test_a_norm_that_does_more_than_normalise_stays(norm: nn.Module, reason: str) -> None:
    model, x = drawn(nn.Sequential(nn.Conv2d(8, 8, 3), norm)), image(2, 8, 6, 6)
    gm = fxdecomp.trace(leaves_alone_its_norms(model), x)
    small = fxdecomp.transform(gm, FULL)
    assert (small(x) - model(x)).abs().max() < 1e-5 * model(x).abs().max()
    assert [fold.reason for fold in fxdecomp.report(small).record.folds] == [reason]


def test_a_layer_with_a_backward_pre_hook_keeps_it() -> None:
    model = nn.Sequential(nn.Linear(16, 16))
    model[0].register_full_backward_pre_hook(lambda _, grads: grads)
    gm = fxdecomp.trace(model, image(2, 16))
    small = fxdecomp.transform(gm, fxdecomp.Policy(method="svd", rank=2))
    assert [row.reason for row in fxdecomp.report(small).skipped] == [fxdecomp.Reason.HOOKED]


class Upsampling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x, output_size=(16, 16))


def test_a_layer_that_is_told_its_output_size_keeps_it() -> None:
    model, x = drawn(nn.Sequential(Upsampling(), nn.BatchNorm2d(8))), image(1, 8, 8, 8)
    gm = fxdecomp.trace(model, x)
    small = fxdecomp.transform(gm, FULL)
    assert torch.equal(small(x), model(x))
    left = fxdecomp.report(small).skipped
    assert [row.reason for row in left] == [fxdecomp.Reason.OUTPUT_SIZE, fxdecomp.Reason.ELEMENTWISE]
    assert (left[0].params, left[0].macs) == (8 * 8 * 9 + 8, 8 * 8 * 9 * 8 * 8)


@pytest.mark.parametrize("frozen", [("weight",), ("bias",), ("weight", "bias"), ()])
@pytest.mark.parametrize("dialect", ["module", "functional", "aten"])
def test_what_is_frozen_stays_frozen(dialect: str, frozen: tuple[str, ...]) -> None:
    model, x = nn.Sequential(nn.Linear(32, 32)).eval(), image(2, 32)
    for name in frozen:
        getattr(model[0], name).requires_grad_(False)
    given = {"module": model, "functional": model[0], "aten": torch.export.export(model, (x,))}[dialect]
    small = fxdecomp.transform(fxdecomp.trace(given, x), fxdecomp.Policy(method="svd", rank=4))
    trains = {name: parameter.requires_grad for name, parameter in small.named_parameters()}
    assert len(trains) == 3
    for name, value in trains.items():
        assert value == (("bias" if name.endswith("bias") else "weight") not in frozen), name
