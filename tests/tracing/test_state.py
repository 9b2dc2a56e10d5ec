"""State of a network that symbolic_trace would lose: changes of buffers, regions without gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxdecomp
from tests.nets import drawn, image


class Streaming(nn.Module):
    """Keeps the end of its input for the next call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3)
        self.register_buffer("cache", torch.zeros(1, 4, 2))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.cache, x], -1)
        self.cache = y[..., -2:]
        return self.conv(y)


class Centring(nn.Module):
    """Takes its mean output away, averaged over the calls; rebinds the buffer or changes it in place."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.in_place = in_place
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        if self.in_place:
            self.mean.mul_(0.9).add_(0.1 * h.mean(0).detach())
        else:
            self.mean = 0.9 * self.mean + 0.1 * h.mean(0).detach()
        return h - self.mean


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (Streaming, image(1, 4, 5)),
        (lambda: Centring(in_place=True), image(4, 8)),
        (lambda: Centring(in_place=False), image(4, 8)),
    ],
    ids=["cache", "in place", "rebound"],
)
def test_successive_calls_agree(make: Callable[[], nn.Module], x: Tensor) -> None:
    gm = fxdecomp.trace(drawn(make()), x)
    small = fxdecomp.transform(gm, fxdecomp.Policy(method="svd", rank=1.0, require_saving=False))
    model = drawn(make())
    with torch.no_grad():
        for _ in range(3):
            wanted = model(x)
            assert torch.allclose(gm(x), wanted, atol=1e-6)
            assert torch.allclose(small(x), wanted, atol=1e-5)


def test_changes_that_are_lost_are_remarked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError("no such operator")

    monkeypatch.setattr(torch.export, "export", refuse)
    gm = fxdecomp.trace(drawn(Centring(in_place=True)), image(4, 8))
    assert fxdecomp.report(gm).remarks == (
        "torch.export, which would keep what the network does to its buffers, failed: "
        "NotImplementedError: no such operator",
    )
    with pytest.raises(fxdecomp.TraceError, match="the graph computes something else"):
        fxdecomp.trace(drawn(Streaming()), image(1, 4, 5))


class Frozen(nn.Module):
    """Runs its first layer without gradients."""

    def __init__(self, *, hidden: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2) if hidden else None

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.fc(x)
        return h if self.attention is None else self.attention(h, h, h)[0]


@pytest.mark.parametrize("hidden", [False, True])
def test_a_part_without_gradients_is_remarked(hidden: bool) -> None:
    model = drawn(Frozen(hidden=hidden))
    gm = fxdecomp.trace(model, image(4, 8))
    assert fxdecomp.report(gm).record.traced_with == ("torch.export" if hidden else "symbolic_trace")
    assert fxdecomp.report(gm).remarks == (
        "the network runs layers under torch.no_grad, the graph does not; "
        "freeze the parameters that recovery must not train",
    )
    with torch.no_grad():
        gm = fxdecomp.trace(model, image(4, 8))
    assert fxdecomp.report(gm).remarks == ()
