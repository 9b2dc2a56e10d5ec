"""Methods and ranks by layer from a TOML file, and the plan that came of them, replayed."""

import sys
from pathlib import Path

import torch
from torch import nn

import fxdecomp


def main(folder: Path) -> None:
    """Apply `own_policy.toml`, save the plan, replay it, and check that the result is the same."""
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()]
    rest = [
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 32),
    ]
    model = nn.Sequential(*convolutions, *rest).eval()
    example = torch.randn(1, 3, 32, 32)
    gm = fxdecomp.trace(model, example)
    policy = fxdecomp.Policy.load(Path(__file__).with_name("own_policy.toml"))
    small = fxdecomp.transform(gm, policy)
    report = fxdecomp.report(small)
    print(report)
    report.plan.save(folder / "plan.json")
    again = fxdecomp.transform(gm, fxdecomp.Policy.from_plan(fxdecomp.Plan.load(folder / "plan.json")))
    with torch.no_grad():
        print("the plan gives the same network:", torch.equal(again(example), small(example)))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
