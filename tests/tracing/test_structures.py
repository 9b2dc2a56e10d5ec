"""Graphs that other tools made, with nested inputs by position."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import fxdecomp
from tests.nets import image

X, Y = image(4, 8), image(4, 8, seed=2)


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (lambda d: d["a"] + 2 * d["b"], ({"a": X, "b": Y},)),
        (lambda d: d["a"] + 2 * d["b"], ({"b": Y, "a": X},)),
        (lambda pair, y: pair[0] * pair[1] - y, ((X, Y), X)),
        (lambda pair: pair[0] * pair[1], ([X, Y],)),
    ],
    ids=["dict", "other order", "pair", "list"],
)
def test_positional_arguments_alone(function: Callable[..., Any], inputs: tuple[Any, ...]) -> None:
    given = make_fx(function)(*inputs)
    gm = fxdecomp.trace(given, inputs)
    assert torch.equal(gm(*inputs), function(*inputs))
    with pytest.raises(fxdecomp.TraceError, match="do not have the structure that the graph takes"):
        fxdecomp.trace(given, (*inputs, X))
