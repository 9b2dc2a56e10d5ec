"""What each step of calibration brings: weight-only, calibrated, refitted.

    python -m benchmarks.calibration recogniser --methods tucker2 --factors 3.7 6.5
    python -m benchmarks.calibration recogniser --methods all --factors 3.7
    python -m benchmarks.calibration digits
    python -m benchmarks.calibration vgg

The recogniser reads 64 lines without labels and is judged on other lines; all convolutions but the first are
decomposed at one share of their channels, the share at which the whole stack of convolutions takes the stated
factor fewer multiply-accumulates. Rows are printed as JSON, one line each.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxdecomp
from fxdecomp.calibration import Calibration
from fxdecomp.decompositions import METHODS, grouped_stage_specs, method_for, method_named, problems_of
from fxdecomp.passes import FoldBatchNorm
from fxdecomp.policy import Policy
from fxdecomp.ranks import Ratio
from fxdecomp.sites import Site, survey

STEPS = ("weight-only", "calibrated", "refitted")


class Clock:
    """Seconds by kind of work, from the library's progress calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def __call__(self, work: str, done: int, total: int) -> None:
        """Count the time since the last call as spent on `work`."""
        now = time.perf_counter()
        self.seconds[work] = round(self.seconds.get(work, 0.0) + now - self._last, 2)
        self._last = now


def layer_macs(site: Site, method: str, share: float) -> int:
    """Multiply-accumulates of a layer after a decomposition, or before it where that saves nothing."""
    spec = site.spec
    chosen = method_for(method_named(method), spec.per_group)
    if chosen.refusal(spec.per_group):
        return site.macs
    rank = Ratio(share).choose(chosen, spec, problems_of(site.weight, spec))
    assert rank is not None
    chain = sum(
        stage.spec.macs for call in site.calls for stage in grouped_stage_specs(chosen, call.spec, rank)
    )
    return min(chain, site.macs)


def share_for(sites: Sequence[Site], kept: Sequence[Site], method: str, factor: float) -> float:
    """The share of the channels at which layers, with those that are kept dense, take `factor` fewer MACs."""
    dense = sum(site.macs for site in [*sites, *kept])
    fixed = sum(site.macs for site in kept)
    low, high = 0.01, 1.0
    for _ in range(16):
        middle = (low + high) / 2
        total = fixed + sum(layer_macs(site, method, middle) for site in sites)
        low, high = (middle, high) if total * factor <= dense else (low, middle)
    return low


def compare(
    gm: GraphModule,
    names: Callable[[str], bool],
    batches: Sequence[Tensor],
    judge: Callable[[GraphModule], float],
    methods: Iterable[str],
    factors: Iterable[float],
    steps: Iterable[str] = STEPS,
    *,
    whole: Callable[[str], bool] | None = None,
) -> None:
    """Print a row for every method, factor and step."""
    found = survey(FoldBatchNorm()(gm)).sites
    sites = [site for site in found if names(site.name)]
    kept = [site for site in found if not names(site.name) and (whole is None or whole(site.name))]
    everything = sum(site.macs for site in [*sites, *kept])
    print(json.dumps({"step": "dense", "score": judge(gm)}), flush=True)
    for method in methods:
        for factor in factors:
            share = share_for(sites, kept, method, factor)
            total = sum(site.macs for site in kept) + sum(layer_macs(site, method, share) for site in sites)
            exclude = [site.name for site in found if not names(site.name)]
            policy = Policy(method=method, rank=share, exclude=exclude)
            for step in steps:
                clock = Clock()
                start = time.perf_counter()
                data = None if step == "weight-only" else Calibration(batches, refit=step == "refitted")
                small = fxdecomp.transform(gm, policy, calibration=data, progress=clock)
                row = {
                    "method": method,
                    "factor": round(everything / total, 2),
                    "step": step,
                    "share": round(share, 4),
                    "score": judge(small),
                    "seconds": round(time.perf_counter() - start, 1),
                    "work_s": clock.seconds,
                }
                print(json.dumps(row), flush=True)


def recogniser(arguments: argparse.Namespace) -> None:
    from fxdecomp.demo.judging import judge
    from fxdecomp.demo.lines import Split, render_lines
    from fxdecomp.demo.recogniser import load_recogniser

    calibration = torch.split(render_lines(64, Split.CALIBRATION).images, 8)
    lines = render_lines(arguments.lines, Split.JUDGE)
    gm = fxdecomp.trace(load_recogniser(), calibration[0])
    compare(
        gm,
        lambda name: name.startswith("features.") and name != "features.conv1",
        calibration,
        lambda network: round(100 * judge(network, lines).exact, 2),
        arguments.methods,
        arguments.factors,
        arguments.steps,
        whole=lambda name: name.startswith("features."),
    )


class Residual(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.two = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Conv2d(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps to feature maps."""
        y = self.norm2(self.two(torch.relu(self.norm1(self.one(x)))))
        return torch.relu(y + self.shortcut(x))


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `[N, T, width]` to tokens."""
        query, key, value = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        y: Tensor = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return y


class Transformer(nn.Module):
    """Three blocks over sixteen tokens, from a convolutional stem (Xiao et al. 2021, section 4)."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, width, 2, 2)
        )
        self.place = nn.Parameter(torch.randn(16, width) * 0.1)
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[N, 1, 8, 8]` to scores `[N, 10]`."""
        tokens = self.stem(x).flatten(2).transpose(1, 2) + self.place
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


def digits(arguments: argparse.Namespace) -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    labels = torch.tensor(data.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:1297], order[1297:]
    resnet = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        Residual(32, 32, 1), Residual(32, 64, 2), Residual(64, 64, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    for name, build, methods, excluded in (
        ("resnet", lambda: resnet, arguments.methods, ("0", "8")),
        ("transformer", Transformer, ["svd"], ("stem.0", "stem.3", "head")),
    ):
        torch.manual_seed(0)
        network = fit(build(), images[train], labels[train])
        gm = fxdecomp.trace(network, images[:2])

        @torch.no_grad()
        def judge(each: GraphModule) -> float:
            return round(100 * float((each(images[test]).argmax(1) == labels[test]).float().mean()), 2)

        print(json.dumps({"network": name}), flush=True)
        batches = torch.split(images[train][:512], 64)
        compare(
            gm,
            lambda site, excluded=excluded: site not in excluded,  # type: ignore[misc]
            batches, judge, methods, arguments.factors, arguments.steps,
        )  # fmt: skip


def fit(network: nn.Module, images: Tensor, labels: Tensor) -> nn.Module:
    """Train for forty rounds with small shifts."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    rounds = 40
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 4e-3, total_steps=rounds * (len(images) // 64 + 1)
    )
    for _ in range(rounds):
        for part in torch.split(torch.randperm(len(images)), 64):
            shift = [int(value) for value in torch.randint(-1, 2, (2,))]
            loss = nn.functional.cross_entropy(network(images[part].roll(shift, (2, 3))), labels[part])
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
    return network.eval()


def vgg(arguments: argparse.Namespace) -> None:
    """Time and memory on a VGG-16 with 64 images of 224 x 224; its weights are drawn."""
    from pytorchcv.model_provider import get_model

    torch.manual_seed(0)
    network = get_model("vgg16").eval()
    batches = torch.split(torch.randn(64, 3, 224, 224), 4)
    gm = fxdecomp.trace(network, batches[0])
    clock = Clock()
    start = time.perf_counter()
    policy = Policy(method=arguments.methods[0], rank=0.5)
    fxdecomp.transform(gm, policy, calibration=batches, progress=clock)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        json.dumps(
            {
                "seconds": round(time.perf_counter() - start),
                "peak_GiB": round(peak, 2),
                "work_s": clock.seconds,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=("recogniser", "digits", "vgg"))
    parser.add_argument("--methods", nargs="+", default=["tucker2"])
    parser.add_argument("--factors", nargs="+", type=float, default=[3.7, 6.5])
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=STEPS)
    parser.add_argument("--lines", type=int, default=1000)
    arguments = parser.parse_args()
    if arguments.methods == ["all"]:
        arguments.methods = [method.name for method in METHODS if method.name != "svd"]
    {"recogniser": recogniser, "digits": digits, "vgg": vgg}[arguments.network](arguments)


if __name__ == "__main__":
    main()
