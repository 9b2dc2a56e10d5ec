"""What weights and values take, against sums by hand."""

import torch
from torch import Tensor, nn

import fxdecomp
from fxdecomp.reporting.memory import memory_of
from tests.nets import drawn, image


class Shortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.back = nn.Conv2d(4, 12, 1), nn.Conv2d(12, 4, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(torch.relu(self.wide(x)))


def test_values_that_are_alive_at_once_are_counted_and_those_of_no_layer_written_over() -> None:
    gm = fxdecomp.trace(drawn(Shortcut()), image(2, 4, 5, 5))
    found = memory_of(gm)
    value = 2 * 5 * 5 * 4  # one channel, in bytes
    assert found.weight_bytes == 4 * (48 + 12 + 48)
    assert (found.value_bytes, found.at) == (value * (4 + 12 + 4), "back")
    layers = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 2))
    assert memory_of(fxdecomp.trace(layers, image(1, 8))).value_bytes == 4 * (8 + 32)


def test_a_value_that_nothing_reads_is_counted_where_it_is_made() -> None:
    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first, _ = x.chunk(2, 1)
            return first.exp()

    found = memory_of(fxdecomp.trace(Halves(), torch.randn(1, 64)))
    assert found.weight_bytes == 0
    assert found.value_bytes >= 4 * 64
