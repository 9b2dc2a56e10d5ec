"""What narrower inputs and fewer states of recurrent layers bring: the demo's recogniser with its two LSTMs.

    python -m benchmarks.recurrent [--lines 500] [--folder DIR] [--latency]
    python -m benchmarks.recurrent --states   # the LSTMs with fewer states, all else dense
    python -m benchmarks.recurrent --layer    # the least time of one such layer, whole and narrower

Each budget is spent twice, once with the LSTMs left alone, fitted to 64 unlabelled lines, untrained. Judged
on lines that were not seen before; times are of one line on one thread, in turn with the dense network.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

import fxdecomp
from fxdecomp import Latency, MACs, Policy, Rule
from fxdecomp.decompositions import method_named
from fxdecomp.demo.judging import judge
from fxdecomp.demo.lines import Split, render_lines
from fxdecomp.demo.recogniser import load_recogniser
from fxdecomp.demo.running import CALIBRATION_LINES
from fxdecomp.latency.chain_graphs import chain_graph
from fxdecomp.latency.place import Place
from fxdecomp.layers import LayerSpec, Recurrence

_BATCH = 8
_STATES = (0.875, 0.75, 0.625, 0.5)


def _time_layer(runs: int = 800) -> None:
    """Print the least time of the recogniser's LSTM on 159 steps: others on the machine only add to it."""
    recurrence = Recurrence("LSTM", 256, directions=2, steps=159)
    spec = LayerSpec(256, recurrence.products, positions=159, recurrence=recurrence)
    chains = {f"rank {r}": method_named("svd").form(spec, (r,)).stages for r in (128, 112, 96, 64, 16)}
    specs = {"whole": [spec]} | {name: [stage.spec for stage in stages] for name, stages in chains.items()}
    for states in (224, 192, 160, 128):
        fewer = replace(recurrence, hidden=states)
        specs[f"{states} states"] = [replace(spec, out_channels=fewer.products, recurrence=fewer)]
    timed = {name: Place().run_of(chain_graph(parts)) for name, parts in specs.items()}
    least = dict.fromkeys(specs, float("inf"))
    for _ in range(runs):
        for name, run in timed.items():
            least[name] = min(least[name], run())
    print(", ".join(f"{name} {taken * 1e3:.2f} ms" for name, taken in least.items()))


def _budgets(*, latency: bool) -> Iterator[tuple[str, Policy]]:
    """Each budget with the LSTMs left alone, and with them."""
    for budget in (MACs(0.25), Latency(0.4), Latency(0.35))[: 3 if latency else 1]:
        yield f"{budget}, LSTMs left alone", Policy(budget=budget, exclude=["*.lstm"])
        yield f"{budget}, LSTMs too", Policy(budget=budget)


def main() -> None:
    """Print a line for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=500)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--latency", action="store_true", help="budgets of time as well")
    parser.add_argument("--states", action="store_true", help="fewer states alone")
    parser.add_argument("--layer", action="store_true", help="one layer alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.layer:
        _time_layer()
        return
    fresh = render_lines(options.lines, Split.JUDGE)
    unlabelled = render_lines(CALIBRATION_LINES, Split.CALIBRATION).images
    dense = fxdecomp.trace(load_recogniser(), fresh.images[:1])
    known = fxdecomp.study(dense, list(torch.split(unlabelled, _BATCH)))
    policies = dict(_budgets(latency=options.latency))
    if options.states:
        policies = {f"{s} of the states": Policy(rules=[Rule("*.lstm", width=s)]) for s in _STATES}
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        fxdecomp.export.to_onnx(dense, fresh.images[:1], folder / "dense.onnx")
        print(f"dense: {judge(dense, fresh).exact:.1%} of {options.lines} lines", flush=True)
        for name, policy in policies.items():
            try:
                small = fxdecomp.transform(dense, policy, calibration=known)
            except fxdecomp.PolicyError as error:
                print(f"{name}: {error}", flush=True)
                continue
            told = fxdecomp.report(small)
            path = folder / "small.onnx"
            fxdecomp.export.to_onnx(small, fresh.images[:1], path)
            timed = fxdecomp.export.benchmark(
                {"dense": folder / "dense.onnx", "small": path}, threads=1, profile=False
            )
            ranks = ", ".join(f"{o.site} {o.method} {o.rank}" for o in told.applied if "lstm" in o.site)
            print(
                f"{name}: {judge(small, fresh).exact:.1%} read, {told.macs_after / 1e6:,.0f} M MACs of "
                f"{told.macs_before / 1e6:,.0f} M, {timed.ratio('dense', 'small')}; {ranks}",
                flush=True,
            )


if __name__ == "__main__":
    main()
