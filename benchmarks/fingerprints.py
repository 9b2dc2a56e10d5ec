"""Fingerprints of many transforms: versions of this package that print the same lines give the same networks.

    python -m benchmarks.fingerprints > before.txt    # and again after a change, on the same machine

A line holds the SHA-256 of every weight, and that of the report with its plan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxdecomp
from fxdecomp import MACs, Params, Policy, Rule

METHODS = ("tucker2", "cp", "cp3", "spatial_svd", "channel_svd", "tensor_train")


class Recurrent(nn.Module):
    """Convolution, LSTM, Linear: a recogniser of lines in little."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.mixing = nn.Conv2d(32, 32, 3, stride=2, padding=1)
        self.memory = nn.LSTM(32 * 4, 32, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, 20)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, 1, 8, width]` to `[n, width / 2, 20]`."""
        y = torch.relu(self.mixing(self.features(x)))
        steps = y.flatten(1, 2).transpose(1, 2)
        return self.head(self.memory(steps)[0])  # type: ignore[no-any-return]


class Attending(nn.Module):
    """Patches, one block of attention and an MLP: a vision transformer in little."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 48, 4, stride=4)
        self.qkv = nn.Linear(48, 144)
        self.out = nn.Linear(48, 48)
        self.mlp = nn.Sequential(nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 48))
        self.norm = nn.LayerNorm(48)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, 3, 16, 16]` to `[n, 10]`."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(tokens)).chunk(3, dim=-1)
        seen = torch.softmax(q @ k.transpose(1, 2) / 48**0.5, dim=-1) @ v
        tokens = tokens + self.out(seen)
        tokens = tokens + self.mlp(self.norm(tokens))
        return self.head(tokens.mean(1))  # type: ignore[no-any-return]


def convolutional() -> nn.Sequential:
    """Plain, grouped, strided, dilated and transposed convolutions, BatchNorm and two Linears."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 48, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(48, 48, 3, padding=2, dilation=2, groups=2),
        nn.ReLU(),
        nn.Conv2d(48, 64, (5, 1), padding=(2, 0)),
        nn.ReLU(),
        nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 48),
    )


def networks() -> dict[str, tuple[GraphModule, list[Tensor]]]:
    """Each network with batches of correlated inputs."""
    shapes: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
        "convolutional": (convolutional, (3, 16, 16)),
        "recurrent": (Recurrent, (1, 8, 32)),
        "attending": (Attending, (3, 16, 16)),
    }
    found = {}
    for index, (name, (make, shape)) in enumerate(shapes.items()):
        torch.manual_seed(index)
        model = make().eval()
        noise = torch.randn(5, 8, *shape)
        batches = list((noise.cumsum(-1) / shape[-1] ** 0.5).unbind(0))
        found[name] = (fxdecomp.trace(model, batches[0]), batches)
    return found


def policies() -> dict[str, Policy]:
    """Every method, every rank rule, budgets, rules."""
    found = {method: Policy(method=method, rank=0.4) for method in METHODS}
    found |= {
        "VBMF": Policy(method="tucker2"),
        "Energy": Policy(method="tucker2", rank=fxdecomp.Energy(0.8)),
        "rules": Policy(rules=[Rule("*", method="auto")], budget=MACs(0.6)),
        "MACs": Policy(budget=MACs(0.7)),
        "Params": Policy(budget=Params(0.5)),
    }
    return found


def digest(gm: GraphModule) -> str:
    """SHA-256 of all weights, and of the report, twelve digits each."""
    weights = hashlib.sha256()
    for name, value in sorted(gm.state_dict().items()):
        weights.update(name.encode() + value.detach().contiguous().numpy().tobytes())
    report = json.dumps(fxdecomp.report(gm).to_dict(), sort_keys=True)
    return f"{weights.hexdigest()[:12]} {hashlib.sha256(report.encode()).hexdigest()[:12]}"


def lines() -> Iterator[str]:
    """One for each network, policy and kind of calibration."""
    for network, (gm, batches) in networks().items():
        for name, policy in policies().items():
            if network != "convolutional" and name not in ("tucker2", "MACs"):
                continue
            for calibration in (None, batches):
                small = fxdecomp.transform(gm, policy, calibration=calibration)
                kind = "calibrated" if calibration else "weights"
                yield f"{network} {name} {kind} {digest(small)}"
                again = Policy.from_plan(fxdecomp.report(small).plan)
                if name == "MACs":
                    replayed = fxdecomp.transform(gm, again, calibration=calibration)
                    yield f"{network} {name} {kind}, replayed {digest(replayed)}"


def main() -> None:
    """Print the lines, on one thread."""
    torch.set_num_threads(1)
    for line in lines():
        print(line, flush=True)


if __name__ == "__main__":
    main()
