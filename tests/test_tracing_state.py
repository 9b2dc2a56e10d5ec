"""Networks that change their buffers from call to call: the graph does the same."""

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
