"""What `recover` brings back: the demo's recogniser at 6.5 times fewer MACs, and a digits network at budgets.

    python benchmarks/recovery.py recogniser --method tucker2
    python benchmarks/recovery.py recogniser --method cp --calibration 0
    python benchmarks/recovery.py digits
    python benchmarks/recovery.py gradual

The recogniser sees unlabelled rendered lines of the calibration split, and is judged on lines of the judge
split. Times are wall and processor seconds of `recover` alone: on two idle cores the wall time is about half
the processor time, whatever else the machine was doing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxdecomp
from fxdecomp.graphs.records import record_of

DIGIT_METHODS = ("tucker2", "cp", "cp3", "spatial_svd", "channel_svd", "tensor_train")


def macs(gm: GraphModule, prefix: str, *, before: bool) -> int:
    """MACs of the layers whose names begin with a prefix, before or after the transformation."""
    total = 0
    for outcome in fxdecomp.report(gm).outcomes:
        if outcome.site.startswith(prefix):
            if isinstance(outcome, fxdecomp.Applied):
                total += outcome.macs_before if before else outcome.macs_after
            else:
                total += outcome.macs
    return total


def at_budget(
    gm: GraphModule,
    sites: list[str],
    method: str,
    prefix: str,
    budget: float,
    calibration: Sequence[Tensor] | None = None,
) -> tuple[GraphModule, float]:
    """The graph at the highest uniform ratio, in steps of 1/40, that takes `budget` times fewer MACs."""
    rules = rules_at(gm, sites, method, prefix, budget)
    small = fxdecomp.transform(gm, fxdecomp.Policy(rules=rules), calibration=calibration)
    return small, macs(small, prefix, before=True) / macs(small, prefix, before=False)


def rules_at(
    gm: GraphModule, sites: list[str], method: str, prefix: str, budget: float
) -> list[fxdecomp.Rule]:
    """The rules of the highest uniform ratio, in steps of 1/40, that takes `budget` times fewer MACs."""
    for step in range(40, 0, -1):
        rules = [fxdecomp.Rule(site, method, fxdecomp.Ratio(step / 40)) for site in sites]
        if _factor_of(gm, rules, method, step / 40, prefix) >= budget:
            return rules
    raise SystemExit(f"{method} cannot reach {budget}")


def _factor_of(gm: GraphModule, rules: list[fxdecomp.Rule], method: str, ratio: float, prefix: str) -> float:
    """Times fewer MACs at a ratio, from the stages' geometry alone: nothing is factorised."""
    from fxdecomp.decompositions import method_for, method_named
    from fxdecomp.sites import survey

    dense = small = 0
    selected = {rule.pattern for rule in rules}
    for site in survey(gm).sites:
        if not site.name.startswith(prefix):
            continue
        dense += site.macs
        if site.name in selected:
            chosen = method_for(method_named(method), site.spec)
            limits, channels = chosen.rank_limits(site.spec), chosen.rank_channels(site.spec)
            rank = tuple(
                max(1, min(limit, int(ratio * count))) for limit, count in zip(limits, channels, strict=True)
            )
            small += sum(stage.spec.macs for stage in chosen.stage_specs(site.spec, rank))
        else:
            small += site.macs
    return dense / small


def timed(work: Callable[[], GraphModule]) -> tuple[GraphModule, str]:
    """The result, and the time it took in words."""
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    return (
        result,
        f"{time.perf_counter() - wall:.0f} s wall, {time.process_time() - processor:.0f} s processor",
    )


def recogniser(arguments: argparse.Namespace) -> None:
    from fxdecomp.demo.judging import judge
    from fxdecomp.demo.lines import Split, render_lines
    from fxdecomp.demo.recogniser import load_recogniser

    judged = render_lines(arguments.lines, Split.JUDGE, seed=1)
    images = render_lines(arguments.unlabelled, Split.CALIBRATION, seed=1).images
    # Both halves of a line: the left one has the margin, the right one mostly the end and the padding.
    halves = torch.cat([images[..., :320], images[: len(images) // 2, ..., 200:520]])
    order = torch.randperm(len(halves), generator=torch.Generator().manual_seed(0))
    data = torch.split(halves[order], 16)
    gm = fxdecomp.trace(load_recogniser(), judged.images[:1])
    sites = [f"features.conv{index}" for index in range(2, 8)]
    calibration = torch.split(images[: arguments.calibration], 16) if arguments.calibration else None
    small, factor = at_budget(gm, sites, arguments.method, "features.", arguments.budget, calibration)
    print(f"{arguments.method}, MACs of the conv stack / {factor:.2f}, {len(data)} batches of 16", flush=True)
    result, took = timed(
        lambda: fxdecomp.recover(
            small,
            gm,
            data,
            block_steps=arguments.block_steps,
            steps=arguments.steps,
            rate=arguments.rate,
            block_rate=arguments.block_rate,
            checkpoint=arguments.checkpoint,
        )
    )
    record = record_of(result)
    print(took, record.notes[-1] if record else "", sep="\n", flush=True)
    for name, model in (("dense", gm), ("before", small), ("after", result)):
        reading = judge(model, judged)
        print(
            f"{name:7} exact {reading.exact:.3f}  cer {reading.cer:.4f}  ({reading.count} lines)", flush=True
        )


@dataclass(frozen=True)
class Digits:
    """The digits network, what it learns from, and its accuracy on the digits it has not seen."""

    gm: GraphModule
    data: Sequence[Tensor]
    accuracy: Callable[[nn.Module], float]


DIGIT_SITES = ["3", "6", "10", "13", "16"]


def load_digits_network() -> Digits:
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.tensor(raw.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    truth = torch.tensor(raw.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, truth = images[order], truth[order]
    model = trained_on_digits(images[:1200], truth[:1200])

    def accuracy(network: nn.Module) -> float:
        with torch.inference_mode():
            return float((network(images[1200:]).argmax(1) == truth[1200:]).float().mean())

    return Digits(fxdecomp.trace(model, images[:1]), torch.split(images[:1200], 50), accuracy)


def digits(arguments: argparse.Namespace) -> None:
    known = load_digits_network()
    steps = {"block_steps": arguments.block_steps}
    print(f"dense {known.accuracy(known.gm):.4f}; weight-only start; recovery sees 1200 digits, no labels")
    print("method        MACs /  before  blocks  outputs", flush=True)
    for method in DIGIT_METHODS:
        for budget in arguments.budgets:
            small, factor = at_budget(known.gm, DIGIT_SITES, method, "", budget)
            blocks = fxdecomp.recover(small, known.gm, known.data, **steps, steps=0)
            both = fxdecomp.recover(small, known.gm, known.data, **steps, steps=arguments.steps)
            row = "  ".join(f"{known.accuracy(network):.4f}" for network in (small, blocks, both))
            print(f"{method:13} {factor:5.2f}  {row}", flush=True)


def gradual(arguments: argparse.Namespace) -> None:
    """All layers at once against one layer after the other, with the same number of steps in all."""
    known = load_digits_network()
    rounds = len(DIGIT_SITES)
    print(f"dense {known.accuracy(known.gm):.4f}; {arguments.block_steps} block and {arguments.steps} steps")
    print("method        MACs /  seed  at once  gradual", flush=True)
    for method in ("tucker2", "cp"):
        for budget in arguments.budgets:
            rules = rules_at(known.gm, DIGIT_SITES, method, "", budget)
            small, factor = at_budget(known.gm, DIGIT_SITES, method, "", budget)
            for seed in range(3):
                once = fxdecomp.recover(
                    small,
                    known.gm,
                    known.data,
                    block_steps=arguments.block_steps,
                    steps=arguments.steps,
                    seed=seed,
                )
                step_by_step = known.gm
                for rule in rules:
                    step_by_step = fxdecomp.recover(
                        fxdecomp.transform(step_by_step, fxdecomp.Policy(rules=[rule])),
                        known.gm,
                        known.data,
                        block_steps=arguments.block_steps // rounds,
                        steps=arguments.steps // rounds,
                        seed=seed,
                    )
                row = f"{known.accuracy(once):7.4f}  {known.accuracy(step_by_step):7.4f}"
                print(f"{method:13} {factor:5.2f}  {seed:4d}  {row}", flush=True)


def trained_on_digits(images: Tensor, truth: Tensor) -> nn.Module:
    """Six 3x3 convolutions, trained for some seconds."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    channels = (1, 16, 32, 32, 64, 64, 64)
    for index in range(6):
        layers += [nn.Conv2d(channels[index], channels[index + 1], 3, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(channels[index + 1]), nn.ReLU()]
        if index == 2:
            layers.append(nn.MaxPool2d(2))
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(8):
        for chosen in torch.split(torch.randperm(len(images)), 50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[chosen]), truth[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("recogniser", "digits", "gradual"))
    parser.add_argument("--method", default="tucker2")
    parser.add_argument("--budget", type=float, default=6.5)
    parser.add_argument("--budgets", type=float, nargs="+", default=[2.6, 5.2, 8.0], help="of the digits")
    parser.add_argument("--lines", type=int, default=1000, help="lines that are judged on")
    parser.add_argument("--unlabelled", type=int, default=800, help="lines that are learnt from")
    parser.add_argument("--calibration", type=int, default=64, help="lines for `transform`; 0: weight-only")
    parser.add_argument("--block-steps", type=int, default=80)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--block-rate", type=float, default=1e-2)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--checkpoint", help="continue there after an interruption")
    arguments = parser.parse_args()
    {"recogniser": recogniser, "digits": digits, "gradual": gradual}[arguments.what](arguments)


if __name__ == "__main__":
    main()
