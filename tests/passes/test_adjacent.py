"""Layers that follow each other directly: each edit moves the input of the next one."""

import torch
from torch import nn

import fxdecomp
from tests.nets import drawn, full_rank_error, image, targets


def test_conv_norm_conv_without_an_activation() -> None:
    model = drawn(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4)))
    assert full_rank_error(model, image(2, 3, 9, 9)) < 1e-12


def test_three_convolutions_in_a_row() -> None:
    model = drawn(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.Conv2d(4, 6, 3)))
    assert full_rank_error(model, image(2, 3, 9, 9)) < 1e-12


def test_a_folded_batch_norm_leaves_no_module_behind() -> None:
    model = drawn(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()))
    small = fxdecomp.transform(fxdecomp.trace(model, image(1, 3, 9, 9)), fxdecomp.Policy("tucker2", 1))
    assert targets(small) == ["0.pointwise_in", "0.core", "0.pointwise_out", "2"]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in small.modules())
    assert all(name.startswith("0.") for name in small.state_dict())
    assert torch.isfinite(small(image(1, 3, 9, 9))).all()
