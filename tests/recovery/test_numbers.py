"""What cannot be meant is refused at once, and NaN is named by its batch."""

from typing import Any

import pytest
import torch
from torch import nn

import fxdecomp
from fxdecomp import RecoveryError
from tests.nets import drawn, image

GM = fxdecomp.trace(drawn(nn.Sequential(nn.Linear(8, 8))), image(1, 8))
SMALL = fxdecomp.transform(GM, fxdecomp.Policy("svd", 2))
BATCHES = [image(4, 8, seed=seed) for seed in range(5)]


@pytest.mark.parametrize("name", ["rate", "block_rate"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 0.0, True, "0.1"])
def test_a_rate_that_cannot_be_meant_is_named(name: str, value: Any) -> None:
    with pytest.raises(RecoveryError, match=rf"^{name} is {value!r}; wanted a number above 0"):
        fxdecomp.recover(SMALL, GM, BATCHES, **{"steps": 1, "block_steps": 1, name: value})


@pytest.mark.parametrize("name", ["steps", "block_steps", "seed"])
@pytest.mark.parametrize("value", [-1, 1.5, True, None])
def test_a_count_that_cannot_be_meant_is_named(name: str, value: Any) -> None:
    with pytest.raises(RecoveryError, match=rf"^{name} is {value!r}; wanted a whole number from 0 on"):
        fxdecomp.recover(SMALL, GM, BATCHES, **{"steps": 1, "block_steps": 1, name: value})


def test_the_weight_of_a_task_too() -> None:
    with pytest.raises(RecoveryError, match=r"^task_weight is nan"):
        fxdecomp.recover(SMALL, GM, BATCHES, steps=1, block_steps=1, task_weight=float("nan"))


@pytest.mark.parametrize("index", [0, 3])
def test_a_batch_with_nan_is_named(index: int) -> None:
    batches = [batch.clone() for batch in BATCHES]
    batches[index][1, 2] = torch.nan
    with pytest.raises(RecoveryError, match=f"^batch {index} of data holds NaN"):
        fxdecomp.recover(SMALL, GM, batches, steps=1, block_steps=1)


def test_a_mask_of_infinities_is_none() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return (self.fc(x) + mask).softmax(-1)

    mask = torch.zeros(4, 8)
    mask[:, 5:] = -torch.inf
    gm = fxdecomp.trace(drawn(Masked()), (BATCHES[0], mask))
    small = fxdecomp.transform(gm, fxdecomp.Policy("svd", 2))
    data = [(batch, mask) for batch in BATCHES]
    assert fxdecomp.recover(small, gm, data, steps=2, block_steps=2) is not None
