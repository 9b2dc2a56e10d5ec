"""Reports that several tests show: a small network, all that a page can hold, a hostile name."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import torch
from torch import nn

import fxdecomp
from fxdecomp.export import BenchmarkReport, Kernel, KernelMap, KernelPoint, Quantization, Timing
from fxdecomp.export.ranges import ActivationRange
from fxdecomp.graphs.timed_plans import TimedCandidate, TimedPlan
from fxdecomp.reporting import Frontier, FrontierPoint, Report, Variant
from fxdecomp.reporting.error_path import LayerError
from fxdecomp.reporting.evidence import Lowered
from tests.nets import drawn, image

HOSTILE = "<script>throw 'taken'</script>"
MACHINE = {"processor": "a test", "cores": 2, "versions": {"torch": "0"}}


def network() -> nn.Module:
    """Twelve layers, one of them with a name that is a script, and one depthwise."""
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    blocks["stem"] = nn.Conv2d(3, 32, 3, padding=1)
    blocks[HOSTILE] = nn.Conv2d(32, 32, 3, padding=1)
    blocks["norm"] = nn.BatchNorm2d(32)
    blocks["depthwise"] = nn.Conv2d(32, 32, 3, padding=1, groups=32)
    for index in range(9):
        blocks[f"block{index}"] = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())
    return drawn(nn.Sequential(blocks))


def benchmark_of(told: Report) -> BenchmarkReport:
    """Made-up times: every dense layer 4 ms, every stage 1 ms."""
    dense = tuple(Kernel(o.site, "dense", 4e-3, 0.1, o.macs_before, "CPU") for o in told.outcomes)
    small = tuple(
        Kernel(f"{o.site}.{stage}", "core", 1e-3, 0.1, 10, "CPU") for o in told.applied for stage in o.stages
    )
    timings = [
        Timing("dense", "CPUExecutionProvider", 1, 1, (4.0, 4.0), 4.0, 4.0),
        Timing("small", "CPUExecutionProvider", 1, 1, (2.0, 2.0), 2.0, 2.0),
        Timing("dense", "CUDAExecutionProvider", 1, 1, problem="not available"),
    ]
    settings = {"rounds": 2, "files": {"dense": {"bytes": 2_000_000}, "small": {"bytes": 1_000_000}}}
    return BenchmarkReport(tuple(timings), {"dense": dense, "small": small}, MACHINE, settings)


def full_report() -> Report:
    torch.manual_seed(0)
    gm = fxdecomp.trace(network(), image(1, 3, 8, 8))
    small = fxdecomp.transform(gm, fxdecomp.Policy(method="tucker2", rank=0.5, exclude=["stem"]))
    points = (
        FrontierPoint("dense", 100.0, 0.99),
        FrontierPoint("half", 50.0, 0.98, chosen=True),
        FrontierPoint("tenth", 10.0, 0.5, accepted=False),
        FrontierPoint("worse and dearer", 60.0, 0.9, accepted=False),
    )
    kernels = tuple(KernelPoint(kind, 16, 14, 1e-3, 10**6, 10**5, 50.0) for kind in ("pointwise", "core 3x3"))
    told = fxdecomp.report(small, before=gm)
    rows = ("", (), 4e-3, 0.0), ("tucker2", (16, 16), 2e-3, 0.1), ("svd", (4,), 1e-3, 0.3)
    candidates = tuple(TimedCandidate(*row) for row in rows)
    ranges = (ActivationRange("x", -2.0, 2.0), ActivationRange("block0.0", 0.0, 5.0))
    int8 = Quantization("int8", 0.05, ("stem",), (("stem", 0.2), ("block0.0", 0.01)))
    return Report(
        replace(told.record, latency=TimedPlan((), None, {}, layers={"block0.0": candidates})),
        told.before,
        told.after,
        benchmark_of(told),
        KernelMap(kernels, 80.0, 10.0, "CPUExecutionProvider", "float32", 1, {}),
        Frontier(points, "ms", "accuracy", 0.97, (("a twentieth", "no network meets it"),)),
        (
            Variant("dense", {"accuracy": "99.0 %"}, told.macs_before, told.params_before, 2_000_000),
            Variant("small", {"accuracy": "98.0 %"}, told.macs_after, told.params_after, 1_000_000),
        ),
        "fxdecomp compress tests.nets:it --method tucker2",
        tuple(LayerError(f"block{index}.0", 0.01 * index, 0.02 * index, 0.005 * index) for index in range(8)),
        {"small.int8": Lowered(str(int8), ranges, int8.alone, int8.kept)},
    )
