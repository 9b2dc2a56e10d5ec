"""A detector-like network: outputs at three scales, its own measure of quality, a search within a loss."""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxdecomp


class Detector(nn.Module):
    """A backbone, a pyramid that goes back up, and one head that all scales share."""

    def __init__(self, anchors: int = 3, classes: int = 4) -> None:
        super().__init__()
        widths = (16, 32, 64)
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.stages = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
            for inputs, outputs in zip((16, *widths), widths, strict=False)
        )
        self.lateral = nn.ModuleList(nn.Conv2d(width, 32, 1) for width in widths)
        self.head = nn.Sequential(
            nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, anchors * (5 + classes), 1)
        )

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Scores and boxes at three scales: `[batch, anchors * (5 + classes), height, width]` each."""
        x = F.relu(self.stem(image))
        features = []
        for stage in self.stages:
            x = F.relu(stage(x))
            features.append(x)
        merged = [lateral(feature) for lateral, feature in zip(self.lateral, features, strict=True)]
        for index in (1, 0):
            merged[index] = merged[index] + F.interpolate(merged[index + 1], scale_factor=2.0)
        return tuple(self.head(feature) for feature in merged)


def main(folder: Path) -> None:
    """Search, export, and leave `report.html` in a folder."""
    torch.manual_seed(0)
    model = Detector().eval()
    images = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    gm = fxdecomp.trace(model, images[:1])
    with torch.no_grad():
        wanted = gm(images[8:])

    def same_peaks(network: torch.fx.GraphModule) -> float:
        """The share of positions at which the highest of all channels is the original's: higher is better."""
        with torch.no_grad():
            got = network(images[8:])
        same = [(a.argmax(1) == b.argmax(1)).float().mean() for a, b in zip(got, wanted, strict=True)]
        return float(torch.stack(same).mean())

    result = fxdecomp.search(
        gm,
        images[:1],
        calibration=list(torch.split(images[:8], 4)),
        metric=same_peaks,
        max_drop=0.1,
        evaluations=3,
    )
    print(result)
    fxdecomp.export.to_onnx(result.model, images[:1], folder / "detector.onnx")
    report = fxdecomp.report(result.model, before=gm, search=result)
    report.to_html(folder / "report.html", title="A detector")
    print(report)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
