"""The cost of the pass itself: time per layer over growing graphs, and peak memory on VGG-16.

    python -m benchmarks.scale                 # 100, 1,000 and 10,000 small layers; VGG-16's memory
    python -m benchmarks.scale --layers 100 1000 --no-memory
    python -m benchmarks.scale --functions 250 500 1000    # every public function, by layer

Each measurement runs in a process of its own; `torch` uses one thread.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxdecomp
import fxdecomp.calibration
import fxdecomp.importing
import fxdecomp.recovery

POLICY = fxdecomp.Policy(method="tucker2", rank=2)


def narrow_network(layers: int) -> nn.Module:
    """Convolutions of 8 channels, each with a BatchNorm and a ReLU."""
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*parts).eval()


class Residual(nn.Module):
    """The same with a sum around each layer, so that a thousand of them give outputs of ordinary size."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(narrow_network(1) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Sum up."""
        for layer in self.layers:
            x = x + 0.01 * layer(x)
        return x


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


def measure_functions(layers: int, pipe: Any) -> None:
    """Seconds of CPU of every public function on a network of so many layers."""
    torch.set_num_threads(1)
    x, batches = torch.randn(2, 8, 4, 4), [torch.randn(4, 8, 4, 4) for _ in range(3)]
    times: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = call()
        times[name] = time.process_time() - start
        return result

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.onnx")
        gm = timed("trace", lambda: fxdecomp.trace(Residual(layers).eval(), x))
        small = timed("transform", lambda: fxdecomp.transform(gm, POLICY))
        fitted = fxdecomp.calibration.Calibration(batches, refit=False)
        timed("transform, calibrated", lambda: fxdecomp.transform(gm, POLICY, calibration=fitted))
        timed("and refitted", lambda: fxdecomp.transform(gm, POLICY, calibration=batches))
        timed("graph_diff", lambda: fxdecomp.graph_diff(gm, small))
        told = timed("report", lambda: fxdecomp.report(small, before=gm))
        timed("to_html", lambda: told.to_html(Path(folder, "a.html")))
        timed("recover, a step each", lambda: fxdecomp.recover(small, gm, batches, block_steps=1, steps=1))
        timed("to_onnx", lambda: fxdecomp.export.to_onnx(small, x, path))
        timed("benchmark", lambda: fxdecomp.export.benchmark({"small": path}, rounds=2))
        timed("from_onnx", lambda: fxdecomp.importing.from_onnx(path))
        timed("compare", lambda: fxdecomp.export.check_parity(small, path, [x]))
    pipe.send(times)


def print_functions(counts: Sequence[int]) -> None:
    """Milliseconds of CPU by layer, one column for each size: a row that grows is not linear."""
    columns = [in_process(measure_functions, layers) for layers in counts]
    print(f"{'ms per layer':24s}" + "".join(f"{layers:>9d}" for layers in counts))
    for name in columns[0]:
        shown = (times[name] / layers * 1e3 for times, layers in zip(columns, counts, strict=True))
        print(f"{name:24s}" + "".join(f"{each:9.2f}" for each in shown))


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
    parser.add_argument("--functions", type=int, nargs="+", help="time every public function instead")
    options = parser.parse_args()
    if options.functions:
        print_functions(options.functions)
        return
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
