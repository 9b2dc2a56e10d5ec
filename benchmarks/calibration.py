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
from torch import Tensor
from torch.fx import GraphModule

import fxdecomp
from benchmarks.digit_networks import TRAINED, Transformer, digit_cnn, digit_images, trained
from fxdecomp.calibration import Calibration
from fxdecomp.decompositions import METHODS, method_for, method_named, problems_of
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

    def __call__(self, work: str, done: int, total: int, layer: str = "", /) -> None:
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
    chain = sum(chosen.form(spec, rank).macs for spec in site.specs)
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


def digits(arguments: argparse.Namespace) -> None:
    images, labels = digit_images()
    judged, truth = images[TRAINED:], labels[TRAINED:]
    for name, build, methods, excluded in (
        ("resnet", digit_cnn, arguments.methods, ("0", "8")),
        ("transformer", Transformer, ["svd"], ("stem.0", "stem.3", "head")),
    ):
        gm = fxdecomp.trace(trained(build), images[:2])

        @torch.no_grad()
        def judge(each: GraphModule) -> float:
            return round(100 * float((each(judged).argmax(1) == truth).float().mean()), 2)

        print(json.dumps({"network": name}), flush=True)
        batches = torch.split(images[:512], 64)
        compare(
            gm,
            lambda site, excluded=excluded: site not in excluded,  # type: ignore[misc]
            batches, judge, methods, arguments.factors, arguments.steps,
        )  # fmt: skip


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
