"""A small classifier and its data: big enough to lose something at a low rank, small enough for seconds."""

import torch
from torch import nn

import fxdecomp


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 12, 3, padding=1)
        self.conv2 = nn.Conv2d(12, 16, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(16)
        self.fc = nn.Linear(256, 5)

    def forward(self, x):
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.norm2(self.conv2(x)))
        return self.fc(torch.max_pool2d(x, 2).flatten(1))


def classifier():
    """Random, but with a kernel near a low rank, statistics that fit, and all classes in use."""
    torch.manual_seed(0)
    model = Classifier()
    data = torch.cat(batches(4, seed=9))
    with torch.no_grad():
        sizes = (16, 12, 3, 3)
        factors = [torch.randn(size, 5) for size in sizes]
        low = torch.einsum("or,ir,yr,xr->oiyx", *factors)
        model.conv2.weight.copy_(low / low.std() + 0.4 * torch.randn(sizes))
        model.norm2.momentum = None
        model.train()(data)
        model.eval()
        model.norm2.weight.uniform_(0.5, 2)
        model.norm2.bias.normal_()
        model.fc.weight.mul_(8)
        model.fc.bias.sub_(model(data).mean(0))
    return model


def batches(count=10, size=16, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 1, 8, 8, generator=generator) for _ in range(count)]


def pair(method="tucker2", rank=(4, 3)):
    gm = fxdecomp.trace(classifier(), torch.randn(2, 1, 8, 8))
    return fxdecomp.transform(gm, fxdecomp.Policy(rules=[fxdecomp.Rule("conv2", method, rank)])), gm
