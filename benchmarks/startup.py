"""How long it takes until the package can be used: the commands that need no torch, and the imports.

`python -m benchmarks.startup` prints the median of several new processes each, after one that fills the
caches of files; the first line is what Python itself takes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from statistics import median

_FXDECOMP = ("-m", "fxdecomp")
_EVERY_NAME = "import fxdecomp; [getattr(fxdecomp, name) for name in fxdecomp.__all__]"
_MEASURED = {
    "python alone": ("-c", ""),
    "fxdecomp --version": (*_FXDECOMP, "--version"),
    "fxdecomp --help": (*_FXDECOMP, "--help"),
    "fxdecomp compress --help": (*_FXDECOMP, "compress", "--help"),
    "fxdecomp compress --nonsense": (*_FXDECOMP, "compress", "--nonsense"),
    "fxdecomp inspect nonsense": (*_FXDECOMP, "inspect", "nonsense"),
    "import fxdecomp": ("-c", "import fxdecomp"),
    "import torch": ("-c", "import torch"),
    "import torch, and all of torch that we use": ("-c", "import torch.export._unlift, scipy.optimize"),
    "import every public name of fxdecomp": ("-c", _EVERY_NAME),
}


def seconds_of(arguments: tuple[str, ...], times: int) -> float:
    """The median time of a new Python process, in seconds."""
    taken = []
    for number in range(times + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
        if number:
            taken.append(time.perf_counter() - start)
    return median(taken)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5)
    times = parser.parse_args().times
    for name, arguments in _MEASURED.items():
        print(f"{seconds_of(arguments, times):7.2f} s  {name}")


if __name__ == "__main__":
    main()
