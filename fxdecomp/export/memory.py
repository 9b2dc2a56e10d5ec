"""Peak memory of a model, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The process imports nothing but what it measures; the memory of the imports themselves is taken off.
_SCRIPT = """
import json, resource, sys
import numpy, onnxruntime
path, names, values, provider, options, threads = json.loads(sys.argv[1])
values = numpy.load(values)
feed = {name: values[f"arr_{index}"] for index, name in enumerate(names)}

def peak():
    try:  # getrusage counts the parent as it was when it started this process
        with open("/proc/self/status") as status:
            return 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: in bytes

before = peak()
settings = onnxruntime.SessionOptions()
settings.log_severity_level = 4
settings.intra_op_num_threads = threads
session = onnxruntime.InferenceSession(path, settings, providers=[(provider, options)])
session.run(None, feed)
print(peak() - before)
"""


def peak_bytes(
    path: Path, feed: Mapping[str, NDArray[Any]], provider: str, options: Mapping[str, str], threads: int
) -> int | None:
    """What loading a model and running it once add to the peak of a process's main memory.

    Args:
        path: The ONNX file.
        feed: Its inputs.
        provider: The execution provider.
        options: Its options.
        threads: Intra-op threads.

    Returns:
        Bytes, or None where the system does not tell (Windows) or the process fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "feed.npz"
        np.savez(inputs, *feed.values())
        arguments = json.dumps([str(path), list(feed), str(inputs), provider, dict(options), threads])
        command = [sys.executable, "-c", _SCRIPT, arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else None
