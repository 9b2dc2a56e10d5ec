"""How long compressing takes, and how much memory: one process for each piece of work.

    python -m benchmarks.compressing                         # all of it
    python -m benchmarks.compressing taps recogniser         # some of it
    python -m benchmarks.compressing taps --against ../old   # in turn with another checkout

Printed are the wall time and the CPU time of `transform` (tracing apart), the peak of the resident memory,
and how far the result is from the original. Weights are drawn, but for the recogniser's and those of the
digits' networks. `search` is six evaluations of the recogniser, its metric 200 lines; the time of the metric
is printed apart. `again` is a second budget, from a study in a file. `latency` comes with an empty cache,
exports and times the result; `latency_warm` finds the cache as a first run left it; `latency_again` a study
in a file, too.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

Work = tuple[nn.Module, list[torch.Tensor], dict[str, Any]]
"""A network, the calibration, and the arguments of the policy; a share is one of the multiply-accumulates."""

ROOT = Path(__file__).parents[1]
EXTRAS = ("error", "speedup", "metric_s", "file_gib")


def drawn(*shape: int) -> list[torch.Tensor]:
    """Inputs whose neighbours are alike, one by one."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    for axis in range(2, len(shape)):
        x = x.cumsum(axis) - x.cumsum(axis).mean(axis, keepdim=True)
    return list(torch.split(x / x.std(), 1))


def recogniser() -> Work:
    """EasyOCR's English line recogniser on 64 lines."""
    from fxdecomp.demo.lines import Split, render_lines
    from fxdecomp.demo.recogniser import load_recogniser

    lines = list(torch.split(render_lines(64, Split.CALIBRATION).images, 8))
    return load_recogniser(), lines, {"budget": 0.25}


def digits(build: str) -> Work:
    """A network that was trained on scikit-learn's digits, 256 of them."""
    from benchmarks import digit_networks

    known = digit_networks.digit_images()[0][:256]
    return (
        digit_networks.trained(getattr(digit_networks, build)),
        list(torch.split(known, 32)),
        {"budget": 0.5},
    )


def resnet() -> Work:
    """ResNet-18 of drawn weights, 4 images."""
    from pytorchcv.model_provider import get_model

    return get_model("resnet18"), drawn(4, 3, 224, 224), {"budget": 0.5}


def classifier() -> Work:
    """39 M multiply-accumulates, 256 inputs of 32 x 32."""
    layers: list[nn.Module] = []
    before = 3
    for width in (32, 64, 128):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
        before = width
    head = [nn.Flatten(), nn.Linear(2048, 256), nn.ReLU(), nn.Linear(256, 10)]
    return nn.Sequential(*layers, *head), drawn(256, 3, 32, 32), {"budget": 0.5}


def taps(channels: int = 128) -> Work:
    """A one-dimensional network with kernels of 64 taps, patches of 8,192 numbers, 288 inputs."""
    layers = [
        nn.Conv1d(1, channels, 64, 4, 32),
        nn.ReLU(),
        nn.Conv1d(channels, channels, 64, 2, 32),
        nn.ReLU(),
    ]
    layers += [nn.Conv1d(channels, 32, 64, 2, 32), nn.ReLU(), nn.Flatten(), nn.LazyLinear(360)]
    inputs = drawn(288, 1, 1024)
    net = nn.Sequential(*layers)
    net(inputs[0])
    return net, inputs, {"budget": 0.6}


def wide_taps() -> Work:
    """The same with 1,024 channels: patches of 65,536 numbers, 64 inputs."""
    layers = [nn.Conv1d(1, 1024, 64, 8, 32), nn.ReLU(), nn.Conv1d(1024, 128, 64, 4, 32), nn.ReLU()]
    layers += [nn.Flatten(), nn.LazyLinear(360)]
    inputs = drawn(64, 1, 512)
    net = nn.Sequential(*layers)
    net(inputs[0])
    return net, inputs, {"budget": 0.6}


def classes(count: int) -> Work:
    """An output layer of very many classes, 32 inputs of 24 rows."""
    layers = [nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, count)]
    return nn.Sequential(*layers), list(torch.split(torch.randn(32, 24, 128), 1)), {"budget": 0.6}


def vgg(inputs: list[torch.Tensor], headless: bool, **policy: Any) -> Work:
    """VGG-16, with or without its classifier."""
    widths = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
    layers: list[nn.Module] = []
    before = 3
    for width in widths:
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()] if width else [nn.MaxPool2d(2)]
        before = width or before
    if not headless:
        layers += [nn.Flatten(), nn.Linear(25088, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU()]
        layers += [nn.Linear(4096, 1000)]
    net = nn.Sequential(*layers)
    for layer in net:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    return net, inputs, policy


WORKS: dict[str, Callable[[], Work]] = {
    "recogniser": recogniser,
    "digits_resnet": lambda: digits("digit_cnn"),
    "digits_transformer": lambda: digits("Transformer"),
    "classifier": classifier,
    "taps": taps,
    "wide_taps": wide_taps,
    "classes_8210": lambda: classes(8210),
    "classes_18710": lambda: classes(18710),
    "vgg_uniform": lambda: vgg(drawn(64, 3, 224, 224), False, method="tucker2", rank=0.4),
    "vgg_edges": lambda: vgg(drawn(24, 3, 256, 256), True, budget=0.5),
    "vgg_budget": lambda: vgg(drawn(64, 3, 224, 224), False, budget=0.5),
    "latency": resnet,
    "latency_warm": resnet,
    "latency_again": resnet,
    "search": recogniser,
    "again": recogniser,
}


def measured(name: str) -> None:
    """Do one piece of work in this process and print what it took as JSON."""
    import fxdecomp
    from fxdecomp.export import benchmark, to_onnx

    torch.manual_seed(0)
    net, batches, arguments = WORKS[name]()
    gm = fxdecomp.trace(net.eval(), batches[0])
    share = arguments.pop("budget", None)
    extra: dict[str, float] = {}

    def transformed() -> None:
        if share is not None:
            arguments["budget"] = fxdecomp.MACs(share)
        small = fxdecomp.transform(gm, fxdecomp.Policy(**arguments), calibration=batches)
        quality = fxdecomp.report(small).quality
        extra["error"] = math.nan if quality is None else quality.relative_error

    def timed(known: fxdecomp.Study | None = None) -> None:
        policy = fxdecomp.Policy(budget=fxdecomp.Latency(share))
        with TemporaryDirectory() as folder:
            dense, small = (Path(folder) / f"{name}.onnx" for name in ("dense", "small"))
            to_onnx(gm, batches[0], dense)
            to_onnx(fxdecomp.transform(gm, policy, calibration=known or batches), batches[0], small)
            times = benchmark({"dense": dense, "small": small}, profile=False).median_s
            extra["speedup"] = times["dense"] / times["small"]

    def searched() -> None:
        from benchmarks.searching import Exact

        exact = Exact(200)

        def metric(network: torch.fx.GraphModule) -> float:
            start = time.perf_counter()
            found = exact(network)
            extra["metric_s"] = extra.get("metric_s", 0.0) + time.perf_counter() - start
            return found

        fxdecomp.search(gm, batches[0], calibration=batches, metric=metric, max_drop=0.01, evaluations=6)

    def loaded() -> fxdecomp.Study:
        return fxdecomp.study(gm, batches, saved=Path(os.environ["FXDECOMP_CACHE_DIR"]) / "net.study")

    def again() -> None:
        fxdecomp.transform(gm, fxdecomp.Policy(budget=fxdecomp.MACs(0.35)), calibration=loaded())

    special: dict[str, Callable[[], None]] = {
        "search": searched,
        "again": again,
        "latency": timed,
        "latency_warm": timed,
        "latency_again": lambda: timed(loaded()),
    }
    work = special.get(name, transformed)
    with TemporaryDirectory() as cache:
        os.environ["FXDECOMP_CACHE_DIR"] = cache
        if name == "latency_warm":
            work()
        if name in ("again", "latency_again"):
            known = fxdecomp.study(gm, batches)
            before = fxdecomp.MACs(0.25) if name == "again" else fxdecomp.Latency(share)
            fxdecomp.transform(gm, fxdecomp.Policy(budget=before), calibration=known)
            known.save(Path(cache) / "net.study")
            extra["file_gib"] = (Path(cache) / "net.study").stat().st_size / 2**30
        start, cpu = time.perf_counter(), time.process_time()
        work()
        wall, spent = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"wall_s": wall, "cpu_s": spent, "peak_bytes": peak} | extra))


def run(name: str, checkout: Path, limit_s: float) -> dict[str, float] | None:
    """The same in a process of its own, with a checkout's package; None where it failed or took too long."""
    environment = {**os.environ, "PYTHONPATH": f"{checkout}"}
    command = [sys.executable, str(Path(__file__).resolve()), "--one", name]
    try:
        done = subprocess.run(
            command,
            env=environment,
            cwd=checkout,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        sys.stderr.write(done.stderr[-2000:])
        return None
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("works", nargs="*", help=f"some of {', '.join(WORKS)}")
    parser.add_argument("--against", type=Path, help="another checkout, run in turn with this one")
    parser.add_argument("--limit-s", type=float, default=1800.0, help="for one piece of work")
    parser.add_argument("--one", choices=list(WORKS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measured(options.one)
        return
    checkouts = {"now": ROOT} | ({"before": options.against.resolve()} if options.against else {})
    sys.stdout.write("| work | package | wall | CPU | peak memory | besides |\n|---|---|---|---|---|---|\n")
    for name in options.works or WORKS:
        for label, checkout in reversed(checkouts.items()):
            found = run(name, checkout, options.limit_s)
            row = f"failed, or over {options.limit_s:.0f} s | | |"
            if found is not None:
                times = f"{found['wall_s']:.1f} s | {found['cpu_s']:.1f} s"
                besides = ", ".join(f"{key} {found[key]:.3g}" for key in EXTRAS if key in found)
                row = f"{times} | {found['peak_bytes'] / 2**30:.2f} GiB | {besides}"
            sys.stdout.write(f"| {name} | {label} | {row} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
