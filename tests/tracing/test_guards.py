"""What `torch.export` took for granted is checked for other inputs, and survives copies."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxdecomp
from tests.nets import FULL, drawn, image, relative_difference


class Deciding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.attention = nn.Linear(8, 8), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor, steps: int = 2) -> Tensor:
        x = self.attention(x, x, x)[0]
        for _ in range(steps):
            x = self.fc(x)
        return x * 2 if x.shape[1] % 4 == 0 else x


def exported_again(gm: GraphModule) -> GraphModule:
    free = torch.export.Dim.AUTO
    return fxdecomp.trace(
        torch.export.export(gm, (image(2, 8, 8), 2), dynamic_shapes=({0: free, 1: free}, None)),
        (image(2, 8, 8), 2),
    )


def pickled(gm: GraphModule) -> GraphModule:
    result = pickle.loads(pickle.dumps(gm))
    assert isinstance(result, GraphModule)
    return result


@pytest.mark.parametrize("of", [lambda gm: gm, copy.deepcopy, pickled, exported_again])
def test_inputs_that_take_another_way_through_the_network_are_refused(
    of: Callable[[GraphModule], GraphModule],
) -> None:
    model = drawn(Deciding()).eval()
    small = of(fxdecomp.transform(fxdecomp.trace(model, (image(2, 8, 8), 2)), FULL))
    for shape in [(1, 8, 8), (3, 12, 8)]:
        assert relative_difference(model, small, (image(*shape), 2)) < 1e-5
    with pytest.raises(fxdecomp.TraceError, match=r"the graph holds where \(x\.shape\[1\] % 4\) == 0, which"):
        small(image(1, 6, 8), 2)
    with pytest.raises(fxdecomp.TraceError, match="the graph holds where steps == 2, which"):
        small(image(1, 8, 8), 3)


def test_a_size_that_its_author_fixed_is_named() -> None:
    program = torch.export.export(drawn(nn.Linear(8, 8)), (image(2, 8),))
    gm = fxdecomp.trace(program, image(2, 8))
    with pytest.raises(fxdecomp.TraceError, match=r"input_1\.shape\[0\] == 2, .* with that size free"):
        gm(image(3, 8))
