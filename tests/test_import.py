"""`import fxdecomp` is quick and quiet, and pulls in nothing that only some users need."""

import json
import subprocess
import sys

HEAVY = ("onnxruntime", "matplotlib", "typer", "rich", "onnx", "onnxscript", "pytorchcv", "PIL", "jinja2")
SCRIPT = f"""
import json, sys, time
import torch, torch.fx, torch.export
start = time.perf_counter()
import fxdecomp
seconds = time.perf_counter() - start
heavy = [name for name in {HEAVY!r} if name in sys.modules]
print(json.dumps({{"seconds": seconds, "heavy": heavy}}))
"""


def test_import_is_light_quick_and_raises_no_warning() -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    told = json.loads(result.stdout)
    assert told["heavy"] == []
    assert told["seconds"] < 5, "the package's own part of the import, on a loaded machine"
