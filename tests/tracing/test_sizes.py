"""Sizes stay free where the network allows it; those that torch.export fixes without a word are remarked."""

import torch
from torch import Tensor, nn

import fxdecomp
from fxdecomp.graphs.inputs import Arguments
from fxdecomp.tracing.reference import difference
from tests.nets import drawn, image


class Attending(nn.Module):
    """Hides its layers from symbolic_trace."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.attention(x, x, x, attn_mask=mask)[0]


class Folding(Attending):
    """Of a batch of four only."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(4, 1, 8), image(1, 1))


class Summing(Attending):
    """Takes any number of channels, and sums them over a constant in a loop."""

    def forward(self, x: Tensor) -> Tensor:
        total = sum(x[:, channel] for channel in range(x.shape[1]))
        return super().forward(total, image(5, 5))


class Unfolding(nn.Module):
    """Rows of pixels that share their place in patches of two by two; the example has as many as patches."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        patches = height // 2 * (width // 2)
        rows = x.reshape(n * c * (height // 2), 2, width // 2, 2).transpose(1, 2)
        rows = rows.reshape(n, c, patches, 4).transpose(1, 3).reshape(n * 4, patches, -1)
        return self.fc(rows) if rows.shape[1] > 1 else rows


class Scaling(nn.Module):
    """Takes its second input among `**kwargs`."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor, **kwargs: Tensor) -> Tensor:
        return self.fc(x) * kwargs["scale"]


def test_a_batch_of_one_stays_free_beside_an_input_without_a_batch() -> None:
    model, mask = drawn(Attending()), image(5, 5)
    gm = fxdecomp.trace(model, (image(1, 5, 8), mask))
    assert fxdecomp.report(gm).remarks == ()
    assert difference(model(image(3, 5, 8), mask), gm(image(3, 5, 8), mask)) < 1e-5


def test_fixed_axes_are_remarked() -> None:
    said = "torch.export fixed {}; the graph takes the example's sizes there only"
    gm = fxdecomp.trace(drawn(Folding()), image(4, 8))
    assert fxdecomp.report(gm).remarks == (said.format("axis 0 of x"),)
    gm = fxdecomp.trace(drawn(Summing()), image(2, 3, 5, 8))
    assert fxdecomp.report(gm).remarks == (said.format("axis 1 of x"),)


def test_keyword_arguments_of_any_name() -> None:
    model, inputs = drawn(Scaling()), Arguments((image(4, 8),), {"scale": image(4, 8, seed=2)})
    gm = fxdecomp.trace(model, inputs)
    wanted = model(image(4, 8), scale=image(4, 8, seed=2))
    assert torch.allclose(gm(image(4, 8), scale=image(4, 8, seed=2)), wanted)
    assert fxdecomp.report(gm).remarks == (
        "torch.export could leave no size free; the graph takes inputs of the example's sizes only",
    )


def test_what_a_reshape_asks_of_strides_binds_no_batch() -> None:
    model = drawn(Unfolding())
    gm = fxdecomp.trace(model, image(2, 8, 4, 4))
    for rows in (1, 3):
        assert difference(model(image(rows, 8, 4, 4)), gm(image(rows, 8, 4, 4))) < 1e-5
