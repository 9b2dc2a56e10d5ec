"""Weights that a graph computes, and products whose arguments go by name."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxdecomp
from fxdecomp.sites.constants import Constants
from tests.nets import FULL, drawn, image, relative_difference


class Products(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Parameter(torch.empty(16, 16)), nn.Parameter(torch.empty(16, 16))
        self.three, self.bias = nn.Parameter(torch.empty(16, 16)), nn.Parameter(torch.empty(16))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.matmul(x, other=self.one)
        x = torch.mm(input=x, mat2=self.two)
        return torch.addmm(input=self.bias, mat1=x, mat2=self.three)


def test_products_by_name_are_layers() -> None:
    model, x = drawn(Products()), image(4, 16)
    small = fxdecomp.transform(fxdecomp.trace(model, x), FULL)
    assert [outcome.site for outcome in fxdecomp.report(small).applied] == [
        "one",
        "two",
        "three",
    ]
    assert relative_difference(model, small, x) < 1e-5


def test_a_linear_onto_one_number_by_a_vector_is_left_alone() -> None:
    class Scoring(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.weight = nn.Linear(16, 16), nn.Parameter(torch.empty(16))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.fc(x), self.weight.abs())

    model, x = drawn(Scoring()), image(4, 16)
    small = fxdecomp.transform(fxdecomp.trace(model, x), FULL)
    assert [row.detail for row in fxdecomp.report(small).skipped] == ["it is a vector"]


class Reflected(nn.Module):
    """An orthogonal weight from reflections: each step uses the one before it twice."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.vectors = nn.ParameterList(nn.Parameter(torch.empty(16)) for _ in range(steps))
        self.start = nn.Parameter(torch.empty(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.start
        for vector in self.vectors:
            unit = vector / vector.norm()
            weight = weight - 2 * torch.outer(weight @ unit, unit)
        return F.linear(x, weight)


def test_an_expression_does_not_grow_with_what_it_stands_on() -> None:
    model, x = drawn(Reflected(4)), image(4, 16)
    gm = fxdecomp.trace(model, x)
    constants = Constants(gm)
    (linear,) = (node for node in gm.graph.nodes if node.target is F.linear)
    found = constants.of(linear.args[1])
    assert found is not None
    assert len(found.expression) < 10


def test_a_weight_of_many_steps_is_materialised() -> None:
    model, x = drawn(Reflected(40)), image(4, 16)
    small = fxdecomp.transform(fxdecomp.trace(model, x), FULL)
    assert len(fxdecomp.report(small).applied) == 1
    assert relative_difference(model, small, x) < 1e-5


class PositionBias(nn.Module):
    """Swin's table of relative positions, made by a small network; and a weight with a low-rank update."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.last = nn.Buffer(torch.empty(16, 2)), nn.Linear(2, 16), nn.Linear(16, 16)
        self.weight = nn.Parameter(torch.empty(16, 16))
        self.up, self.down = nn.Parameter(torch.empty(16, 2)), nn.Parameter(torch.empty(2, 16))

    def forward(self, x: Tensor) -> Tensor:
        bias = self.last(self.first(self.table).relu())
        return F.linear(x + bias, self.weight + self.up @ self.down)


def test_a_layer_on_a_constant_is_told_as_that_and_a_product_of_constants_is_none() -> None:
    model, x = drawn(PositionBias()), image(4, 16, 16)
    exported = torch.export.export(model, (x,))
    reasons = {o.site: o.reason for o in fxdecomp.report(fxdecomp.trace(exported, x)).skipped}
    assert reasons.pop("linear_2") is fxdecomp.Reason.NOT_TRANSFORMED
    assert reasons == dict.fromkeys(["first", "last"], fxdecomp.Reason.CONSTANT_INPUT)
