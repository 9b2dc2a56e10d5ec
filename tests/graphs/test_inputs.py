"""Inputs by position and by name in one call."""

import torch
from torch import Tensor, nn

import fxdecomp
from fxdecomp.calibration import Calibration
from fxdecomp.calibration.splitting import split
from fxdecomp.graphs.inputs import Arguments, call_arguments
from tests.nets import drawn


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor, *, mask: Tensor) -> Tensor:
        return self.second(self.first(x).relu() * mask)


def call(rows: int, seed: int) -> Arguments:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, 32, generator=generator).round()
    return Arguments((torch.randn(rows, 32, generator=generator),), {"mask": mask})


def test_a_batch_of_both_kinds_is_split_by_its_examples() -> None:
    fitted, held = split(Calibration([call(24, 0)]))
    sizes = []
    for batch in (*fitted.batches, *held):
        args, kwargs = call_arguments(batch)
        sizes.append((len(args[0]), len(kwargs["mask"])))
    assert sizes == [(21, 21), (3, 3)]


def test_a_network_recovers_on_batches_of_both_kinds() -> None:
    gm = fxdecomp.trace(drawn(Masked()), call(8, 0))
    data = [call(16, seed) for seed in range(4)]
    small = fxdecomp.transform(gm, fxdecomp.Policy("svd", 4), calibration=data)
    better = fxdecomp.recover(small, gm, data, block_steps=5, steps=20)
    assert any(note.startswith("recovery: ") for note in fxdecomp.report(better).remarks)
