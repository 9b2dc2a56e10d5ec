"""Networks with attributes that Python or torch cannot copy are traced, and keep what they hold."""

import logging
import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxdecomp
from tests.nets import drawn, image, relative_difference

X = image(4, 8)


class Holding(nn.Module):
    """Holds something besides its layer."""

    def __init__(self, held: object) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.held = held

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class Keeping(Holding):
    """Keeps its activations."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        self.held.append(h)
        return h


class Hooked(Holding):
    """A hook of its own, which must run on the copy."""

    def __init__(self) -> None:
        super().__init__(threading.Lock())
        self.seen = 0
        self.fc.register_forward_hook(self.count)

    def count(self, *_: object) -> None:
        self.seen += 1


@pytest.mark.parametrize(
    "held",
    [
        threading.Lock(),
        np,
        logging.getLogger("a network"),
        {"lock": threading.Lock(), "path": [np]},
        (number for number in ()),
    ],
    ids=["lock", "module", "logger", "nested", "generator"],
)
def test_what_cannot_be_copied_is_shared(held: object) -> None:
    model = drawn(Holding(held))
    gm = fxdecomp.trace(model, X)
    assert relative_difference(model, gm, X) == 0
    assert model.held is held


def test_activations_of_an_earlier_run() -> None:
    model = drawn(Keeping([]))
    model(X)
    gm = fxdecomp.trace(model, X)
    assert len(model.held) == 1
    assert torch.equal(gm(X), model.held[0])


def test_a_hook_that_is_a_method_runs_on_the_copy() -> None:
    model = drawn(Hooked())
    fxdecomp.trace(model, X)
    assert model.seen == 0


def test_an_unflattened_program() -> None:
    inner = drawn(nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 4)))
    model = torch.export.unflatten(torch.export.export(inner, (X,)))
    gm = fxdecomp.trace(model, X)
    assert relative_difference(inner, gm, X) < 1e-6


def test_a_model_that_refuses_to_be_copied() -> None:
    class Unique(Holding):
        def __deepcopy__(self, memo: object) -> None:
            raise RuntimeError("there can be only one")

    with pytest.raises(fxdecomp.TraceError, match="Unique cannot be copied: RuntimeError: there can"):
        fxdecomp.trace(Unique(None), X)
