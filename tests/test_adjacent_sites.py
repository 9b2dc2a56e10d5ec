"""Sites that follow each other directly, and a site that follows itself."""

import torch
from torch import nn

import fxdecomp


def test_sites_without_anything_between_them():
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 6, 3), nn.Conv2d(6, 6, 3)

        def forward(self, x):
            return self.b(self.b(self.a(x)))

    net = Net().eval()
    x = torch.randn(2, 4, 12, 12)
    policy = fxdecomp.Policy(method="channel_svd", rank=6, require_saving=False)
    small = fxdecomp.transform(fxdecomp.trace(net, x), policy)
    assert torch.allclose(small(x), net(x), atol=1e-5)
