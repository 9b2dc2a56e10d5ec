"""A traced graph that computes something else is told from one that rounds differently."""

from dataclasses import dataclass
from math import inf

import pytest
import torch
from torch import Tensor, nn

import fxdecomp
from fxdecomp.tracing.reference import difference
from tests.nets import drawn, image

X = image(4, 8)


class Layered(nn.Module):
    """A layer whose output symbolic_trace takes for granted: a Proxy is no Tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def hidden(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        return h * 10 if isinstance(x, Tensor) else h


class Filled(Layered):
    """Fills places of its output with one value."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.register_buffer("places", torch.arange(8) > 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden(x).masked_fill(self.places, self.value)


class Penalised(Filled):
    """Adds to places of its output."""

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden(x) + self.places * self.value


class Autocast(Layered):
    """Gives 16 bits."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.fc(x)


@dataclass
class Outputs:
    y: Tensor
    doubled: Tensor


class Structured(Layered):
    """Gives a dataclass that torch has not been told of."""

    def forward(self, x: Tensor) -> Outputs:
        h = self.hidden(x)
        return Outputs(h, h * 2)


@pytest.mark.parametrize(
    "model",
    [Filled(-inf), Filled(-1e9), Penalised(-1e9), Penalised(-1e4), Autocast()],
    ids=["-inf", "-1e9", "plus -1e9", "plus -1e4", "autocast"],
)
def test_a_wrong_symbolic_graph_is_not_taken(model: nn.Module) -> None:
    gm = fxdecomp.trace(drawn(model), X)
    assert fxdecomp.report(gm).record.traced_with == "torch.export"
    assert difference(model(X), gm(X)) < 1e-6


def test_a_dataclass_is_looked_into() -> None:
    with pytest.raises(fxdecomp.TraceError, match=r"something else, its outputs differ by 90"):
        fxdecomp.trace(drawn(Structured()), X)


def test_complex_outputs_may_round() -> None:
    spectrum = torch.fft.rfft(X)
    assert difference(spectrum, spectrum * (1 + 1e-5)) < 1e-4
    assert difference(spectrum, spectrum.conj()) > 0.1


def test_roundings_are_measured_against_the_large_values() -> None:
    wanted = torch.cat([torch.full((90,), 1e-4), torch.ones(10)])
    assert difference(wanted, wanted + 1e-6) < 1e-3
    relu = torch.cat([torch.zeros(90), torch.ones(10)])
    assert difference(relu, relu + 1e-6) < 1e-5
    assert difference(torch.zeros(4), torch.ones(4)) > 1


def test_whole_numbers_may_flip_now_and_then() -> None:
    units = (image(1000) * 1e5).round().int()
    assert difference(units, units + 1) < 1e-3
    classes = torch.arange(1000)
    flipped = torch.where(classes % 200 == 0, 7, classes)
    assert difference(classes, flipped) == 0
    assert difference(classes, classes.flip(0)) >= 1
    assert difference(classes > 500, classes < 500) >= 1


@pytest.mark.parametrize(
    "got", [torch.zeros(2, 3), torch.zeros(3, dtype=torch.float16), torch.tensor([0, 0, inf]), (), "a Proxy"]
)
def test_what_is_infinitely_different(got: object) -> None:
    assert difference(torch.zeros(3), got) == inf
