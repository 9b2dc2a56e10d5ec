"""`search` on the pretrained line recogniser: at most one point of exact lines, as fast as that allows.

    python -m benchmarks.searching uniform --out rec
    python -m benchmarks.searching search --out rec    # again after an interruption: it goes on
    python -m benchmarks.searching final --out rec     # every plan that lies there, or --plans auto-0.455 ...

Calibrated on 64 unlabelled lines, searched on 300 others, judged on 1,000 that neither saw. `uniform` finds
the smallest Tucker-2 ratio for all convolutions but the first that loses at most as much, with the same
calibration and the same lines. Every network that was tried leaves its plan; `final` times the dense network
and those of the plans in turn, and reads the 1,000 lines with each.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch.fx import GraphModule

import fxdecomp
from fxdecomp.calibration import Calibration
from fxdecomp.demo.judging import judge
from fxdecomp.demo.lines import Split, render_lines
from fxdecomp.demo.recogniser import load_recogniser
from fxdecomp.export import benchmark, to_onnx

CPU = "CPUExecutionProvider"


def prepared() -> tuple[GraphModule, torch.Tensor, Calibration]:
    known = render_lines(64, Split.CALIBRATION).images
    gm = fxdecomp.trace(load_recogniser(), known[:1])
    return gm, known[:1], Calibration(tuple(torch.split(known, 16)))


class Exact:
    """Share of the lines read without any error."""

    def __init__(self, lines: int) -> None:
        self.lines = render_lines(lines, Split.SEARCH)

    def __call__(self, network: GraphModule) -> float:
        """Read them with a network."""
        return judge(network, self.lines).exact


def searched(options: argparse.Namespace) -> None:
    gm, example, data = prepared()
    found = fxdecomp.search(
        gm,
        example,
        calibration=data,
        metric=Exact(options.lines),
        max_drop=0.01,
        evaluations=options.evaluations,
        provider=CPU,
        state=options.out / "search.state.json",
    )
    print(found, flush=True)
    found.save(options.out / "search.json")
    for trial in found.trials:
        if trial.plan is not None:
            trial.plan.save(options.out / f"auto-{trial.share:.3f}.plan.json")
    print(fxdecomp.report(found.model), flush=True)


def uniform(options: argparse.Namespace) -> None:
    gm, _, data = prepared()
    metric = Exact(options.lines)
    wanted = metric(gm) - 0.01
    low, high = 0.05, 1.0
    for _ in range(options.evaluations):
        ratio = (low * high) ** 0.5
        policy = fxdecomp.Policy(
            method="tucker2", rank=fxdecomp.Ratio(ratio), exclude=["features.conv1", "context*", "classifier"]
        )
        small = fxdecomp.transform(gm, policy, calibration=data)
        value = metric(small)
        print(f"ratio {ratio:.3f}: exact {value:.4f}, wanted {wanted:.4f}", flush=True)
        fxdecomp.report(small).plan.save(options.out / f"uniform-{ratio:.3f}.plan.json")
        low, high = (low, ratio) if value >= wanted else (ratio, high)


def final(options: argparse.Namespace) -> None:
    gm, example, data = prepared()
    lines = render_lines(1000, Split.JUDGE)
    models = {"dense": gm}
    known = {path.name.removesuffix(".plan.json"): path for path in sorted(options.out.glob("*.plan.json"))}
    for name in options.plans or known:
        policy = fxdecomp.Policy.from_plan(fxdecomp.Plan.load(known[name]))
        models[name] = fxdecomp.transform(gm, policy, calibration=data)
    paths = {name: options.out / f"{name}.onnx" for name in models}
    for name, model in models.items():
        to_onnx(model, example, paths[name])
    times = benchmark(paths, providers=[CPU], threads=1, profile=False)
    for name, model in models.items():
        ratio = times.ratio("dense", name)
        reading = judge(model, lines)
        row = {"network": name, "ms": 1e3 * times.median_s[name], "ratio": str(ratio), **reading.to_dict()}
        print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("search", "uniform", "final"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lines", type=int, default=300, help="to search on")
    parser.add_argument("--plans", nargs="*", help="for `final`, by name")
    parser.add_argument("--evaluations", type=int, default=3)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    {"search": searched, "uniform": uniform, "final": final}[options.step](options)


if __name__ == "__main__":
    main()
