"""An image classifier: train, compress with calibration, judge, report, export, time."""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import fxdecomp
from fxdecomp.reporting import Variant


def shapes(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images `[count, 1, 16, 16]` of noisy horizontal, vertical and diagonal bars, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    patterns = torch.stack(
        [rows % 4 < 2, columns % 4 < 2, (rows + columns) % 4 < 2, (rows - columns) % 4 < 2]
    )
    labels = torch.randint(4, (count,), generator=generator)
    noise = torch.randn(count, 16, 16, generator=generator)
    return (patterns[labels].float() + 0.7 * noise).unsqueeze(1), labels


def classifier() -> nn.Module:
    """Four convolutions with BatchNorm, and a Linear."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 32), (32, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 4))


def main(folder: Path) -> None:
    """Train, compress, and leave `report.html` and both ONNX files in a folder."""
    torch.manual_seed(0)
    model = classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(40):
        images, labels = shapes(64, seed=step)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()

    images, labels = shapes(400, seed=1000)
    example = images[:1]
    gm = fxdecomp.trace(model, example)
    policy = fxdecomp.Policy(method="tucker2", rank=fxdecomp.Ratio(0.4, multiple_of=8), exclude=["0"])
    small = fxdecomp.transform(gm, policy, calibration=[shapes(64, seed=2000 + i)[0] for i in range(4)])

    variants = []
    for name, network in {"dense": gm, "small": small}.items():
        fxdecomp.export.to_onnx(network, example, folder / f"{name}.onnx")
        with torch.no_grad():
            right = float((network(images).argmax(1) == labels).float().mean())
        variants.append(Variant(name, {"accuracy": f"{right:.1%}"}))
        print(f"{name}: {right:.1%} right")
    timings = fxdecomp.export.benchmark(
        {name: folder / f"{name}.onnx" for name in ("dense", "small")}, rounds=5
    )
    print(timings)
    report = fxdecomp.report(small, before=gm, benchmark=timings, variants=variants)
    report.to_html(folder / "report.html", title="An image classifier")
    print(report)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
