"""The cost of the pass itself: time per layer over growing graphs, and peak memory on VGG-16.

    python -m benchmarks.scale                 # 100, 1,000 and 10,000 small layers; VGG-16's memory
    python -m benchmarks.scale --layers 100 1000 --no-memory

Each measurement runs in a process of its own; `torch` uses one thread.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import resource
import statistics
import time
from typing import Any

import torch
from torch import nn

import fxdecomp

POLICY = fxdecomp.Policy(method="tucker2", rank=2)


def narrow_network(layers: int) -> nn.Module:
    """Convolutions of 8 channels, each with a BatchNorm and a ReLU."""
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*parts).eval()


def vgg16() -> nn.Module:
    """VGG-16's layers, 138 M parameters."""
    parts: list[nn.Module] = []
    channels = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            parts += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        parts.append(nn.MaxPool2d(2))
    head = [
        nn.Flatten(),
        nn.Linear(25088, 4096),
        nn.ReLU(),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Linear(4096, 1000),
    ]
    return nn.Sequential(*parts, *head).eval()


def measure_time(layers: int, pipe: Any) -> None:
    """Seconds of trace and transform."""
    torch.set_num_threads(1)
    fxdecomp.transform(fxdecomp.trace(narrow_network(2), torch.randn(1, 8, 4, 4)), POLICY)
    model, x = narrow_network(layers), torch.randn(1, 8, 4, 4)
    start = time.perf_counter()
    gm = fxdecomp.trace(model, x)
    traced = time.perf_counter()
    small = fxdecomp.transform(gm, POLICY)
    done = time.perf_counter()
    assert len(fxdecomp.report(small).applied) == layers
    pipe.send((traced - start, done - traced))


def peak_bytes() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_memory(pipe: Any) -> None:
    """Bytes before the network is built, of its weights, of its largest layer, and at the peak."""
    torch.set_num_threads(1)
    before = peak_bytes()
    model = vgg16()
    sizes = [parameter.numel() * parameter.element_size() for parameter in model.parameters()]
    gm = fxdecomp.trace(model, torch.randn(1, 3, 224, 224))
    fxdecomp.transform(gm, fxdecomp.Policy(method="tucker2", rank=0.5))
    pipe.send((before, sum(sizes), max(sizes), peak_bytes()))


def in_process(target: Any, *args: object) -> Any:
    """What a function sends from a process of its own."""
    context = mp.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*args, sender))
    process.start()
    result = receiver.recv()
    process.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="*", default=[100, 1000, 10000])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--no-memory", action="store_true")
    options = parser.parse_args()
    print(f"{'layers':>8s} {'trace_s':>9s} {'transform_s':>12s} {'ms per layer':>13s}")
    for layers in options.layers:
        times = [in_process(measure_time, layers) for _ in range(options.repeats)]
        trace_s, transform_s = (statistics.median(column) for column in zip(*times, strict=True))
        print(
            f"{layers:8d} {trace_s:9.2f} {transform_s:12.2f} {(trace_s + transform_s) / layers * 1e3:13.2f}"
        )
    if not options.no_memory:
        before, weights, largest, peak = in_process(measure_memory)
        more = peak - before
        print(
            f"VGG-16: weights {weights / 1e6:.0f} MB, largest layer {largest / 1e6:.0f} MB; at its peak the "
            f"process holds {more / 1e6:.0f} MB more than before the network was built: twice the weights "
            f"and {(more - 2 * weights) / largest:.2f} times the largest layer"
        )


if __name__ == "__main__":
    main()
