"""Random networks and what must hold of each: full rank, counts, replays, exports, imports, calibration.

    python -m benchmarks.fuzz --graphs 2000 --seed 7             # every oracle at every network
    python -m benchmarks.fuzz --graphs 2000 --exports-every 5    # exports and calibration at a fifth of them
    python -m benchmarks.fuzz --seed 7 --only 123                # one network of a run again
    python -m benchmarks.fuzz --graphs 2000 --seed 7 --out failures

A network that fails is made smaller as long as it fails alike, and printed as a script that shows the
failure again; with `--out` the script is a file as well. Exits with 1 where anything failed. What fails in
PyTorch or ONNX Runtime without this package is counted apart.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import torch

from benchmarks.fuzz.drawing import network_of
from benchmarks.fuzz.oracles import CHEAP, DEAR
from benchmarks.fuzz.running import Failure, failure_of, script_of, shrunk


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--graphs", type=int, default=100, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the run")
    parser.add_argument("--start", type=int, default=0, help="number of the first")
    parser.add_argument("--only", type=int, help="number of the only one")
    parser.add_argument("--exports-every", type=int, default=1, help="networks to one that is exported too")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--out", type=Path, help="folder for the scripts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    numbers = range(options.start, options.start + options.graphs)
    failed: list[tuple[int, Failure]] = []
    theirs: Counter[str] = Counter()
    start, tried, exports = time.perf_counter(), 0, 0
    for number in [options.only] if options.only is not None else numbers:
        if time.perf_counter() - start > options.seconds:
            break
        tried += 1
        chosen = CHEAP + DEAR if number % options.exports_every == 0 else CHEAP
        exports += len(chosen) > len(CHEAP)
        network = network_of(options.seed, number)
        failure = failure_of(network, chosen)
        if failure is None:
            continue
        if failure.kind == "TheirError":
            theirs[failure.text] += 1
            continue
        failed.append((number, failure))
        oracle = next(each for each in chosen if each.__name__ == failure.oracle)
        told = f"Network {number} of seed {options.seed}"
        script = script_of(shrunk(network, failure, oracle), failure, told)
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / f"{options.seed}_{number}.py").write_text(script)
        print(f"# {told}: {failure.oracle}: {failure.kind}: {failure.text[:300]}\n{script}", flush=True)
    took_s = time.perf_counter() - start
    print(f"{tried} networks of seed {options.seed}, {exports} of them exported, in {took_s:.0f} s")
    for text, count in theirs.most_common():
        print(f"theirs, {count} times: {text}")
    for number, failure in failed:
        print(f"failed: {number}, {failure.oracle}: {failure.kind}: {' '.join(failure.text.split())[:160]}")
    print(f"{len(failed)} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
