"""The unified diff of a small VGG and a small ResNet, as text files; set `UPDATE_GOLDEN=1` to write them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

import fxdecomp
from fxdecomp.passes import FoldBatchNorm
from tests.nets import HALF, image, small_resnet, small_vgg

FOLDER = Path(__file__).parent / "golden"
NETWORKS = {"small_vgg": small_vgg, "small_resnet": small_resnet}


def edits(diff: str) -> tuple[int, int]:
    lines = diff.splitlines()[2:]
    return sum(line.startswith("-") for line in lines), sum(line.startswith("+") for line in lines)


@pytest.mark.parametrize("name", NETWORKS)
def test_fold_and_decompose_change_exactly_these_nodes(name: str) -> None:
    build: Callable[[], nn.Module] = NETWORKS[name]
    gm = fxdecomp.trace(build(), image(2, 3, 16, 16))
    folded = FoldBatchNorm()(gm)
    small = fxdecomp.transform(gm, HALF)
    steps = {
        f"{name}_fold_batch_norm.diff": fxdecomp.graph_diff(gm, folded),
        f"{name}_decompose_layers.diff": fxdecomp.graph_diff(folded, small),
    }
    for file, text in steps.items():
        path = FOLDER / file
        if os.environ.get("UPDATE_GOLDEN"):
            path.write_text(text + "\n")
        assert text + "\n" == path.read_text(), f"{file} differs; run with UPDATE_GOLDEN=1 and read the diff"


@pytest.mark.parametrize(
    ("name", "fold", "decompose"),
    [("small_vgg", (6, 4), (8, 15)), ("small_resnet", (17, 11), (11, 22))],
)
def test_number_of_edits(name: str, fold: tuple[int, int], decompose: tuple[int, int]) -> None:
    assert edits((FOLDER / f"{name}_fold_batch_norm.diff").read_text()) == fold
    assert edits((FOLDER / f"{name}_decompose_layers.diff").read_text()) == decompose
