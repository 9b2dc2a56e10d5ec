"""Small networks that several tests share, with weights and BatchNorm statistics drawn from a seed."""

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

import fxdecomp
from fxdecomp.graphs.inputs import ExampleInputs, call_arguments

FULL = fxdecomp.Policy(method="tucker2", rank=1.0, require_saving=False)
HALF = fxdecomp.Policy(method="tucker2", rank=0.5)


def drawn(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter and BatchNorm statistic, so that no fold is the identity by luck."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
                module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.3)
                module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return model.eval()


def image(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def relative_difference(wanted: nn.Module, got: nn.Module, inputs: ExampleInputs) -> float:
    """Largest difference over the largest output, in the networks' own type."""
    args, kwargs = call_arguments(inputs)
    one, other = wanted(*args, **kwargs), got(*args, **kwargs)
    assert one.shape == other.shape
    assert one.dtype == other.dtype
    return float((one.double() - other.double()).abs().max() / one.double().abs().max())


def full_rank_error(model: nn.Module, inputs: ExampleInputs) -> float:
    """How far a network in float64 is from itself at full rank."""
    args, kwargs = call_arguments(inputs)
    model = model.double().eval()
    wide = (
        {k: v.double() if v.is_floating_point() else v for k, v in kwargs.items()}
        if kwargs
        else tuple(v.double() if v.is_floating_point() else v for v in args)
    )
    return relative_difference(model, fxdecomp.transform(fxdecomp.trace(model, wide), FULL), wide)


def targets(gm: GraphModule) -> list[str]:
    """What the module calls of a graph call, in order."""
    return [str(node.target) for node in gm.graph.nodes if node.op == "call_module"]


def small_vgg() -> nn.Module:
    return drawn(
        nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 32, 3, padding=1, bias=False),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 16, 64),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(64, 10),
        )
    )


class Block(nn.Module):
    """The residual block of ResNet, with its in-place activations."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))
            if stride > 1 or inputs != outputs
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class SmallResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(True)
        )
        self.layer1 = Block(16, 16, 1)
        self.layer2 = Block(16, 32, 2)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.stem(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def small_resnet() -> nn.Module:
    return drawn(SmallResNet())
