"""Small networks with chains as `transform` leaves them, traced with torch alone."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxdecomp.graphs.records import Record, attach_record
from fxdecomp.outcomes import Applied


def tucker_chain(inputs: int, middle: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            pointwise_in=nn.Conv2d(inputs, middle, 1, bias=False),
            core=nn.Conv2d(middle, middle, 3, padding=1, stride=stride, bias=False),
            pointwise_out=nn.Conv2d(middle, outputs, 1),
        )
    )


class Convolutional(nn.Module):
    """A dense conv, a Tucker chain, a CP chain with depthwise stages, and a Linear chain."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            tucker_chain(16, 8, 32),
            nn.ReLU(),
            nn.Sequential(
                OrderedDict(
                    pointwise_in=nn.Conv2d(32, 16, 1, bias=False),
                    vertical=nn.Conv2d(16, 16, (3, 1), padding=(1, 0), groups=16, bias=False),
                    horizontal=nn.Conv2d(16, 16, (1, 3), padding=(0, 1), groups=16, bias=False),
                    pointwise_out=nn.Conv2d(16, 32, 1),
                )
            ),
            nn.ReLU(),
        )
        self.classifier = nn.Sequential(
            OrderedDict(first=nn.Linear(32, 8, bias=False), second=nn.Linear(8, 10))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class Recurrent(nn.Module):
    """Conv, LSTM and a Linear over three axes, as in a text recogniser; two named outputs."""

    def __init__(self, hidden: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.rnn = nn.LSTM(16, hidden, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * hidden, 12)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        columns = self.conv(image).mean(2).transpose(1, 2)
        scores = self.head(self.rnn(columns)[0])
        return {"scores": scores, "best": scores.argmax(2)}


class Residual(nn.Module):
    """Two convolutions, the second of which is added to its block's input: the shape that runtimes fuse."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.first = nn.Conv2d(32, 32, 3, padding=1)
        self.second = tucker_chain(32, 16, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return torch.relu(x + self.second(torch.relu(self.first(x))))


def traced(model: nn.Module, seed: int = 0) -> GraphModule:
    """Trace a network in evaluation mode, its weights drawn from a seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return torch.fx.symbolic_trace(model.eval())


def with_record(gm: GraphModule) -> GraphModule:
    """Attach the record that a transform of `Convolutional` would leave."""
    chain = Applied(
        site="features.2",
        layer="Conv2d 16->32, 3x3",
        method="tucker2",
        rank=(8, 8),
        relative_error=0.25,
        params_before=4640,
        params_after=992,
        macs_before=1179648,
        macs_after=245760,
        calls=1,
        stages=("pointwise_in", "core", "pointwise_out"),
    )
    attach_record(gm, Record(traced_with="symbolic_trace", outcomes=(chain,), policy={"method": "tucker2"}))
    return gm
