"""Every example runs as a user would run it, and leaves what it promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
LEFT = {
    "image_classifier": {"dense.onnx", "small.onnx", "report.html"},
    "detector": {"detector.onnx", "report.html"},
    "transformer": {"encoder.onnx", "encoder.int8.onnx"},
    "own_policy": {"plan.json"},
}
TOLD = {
    "image_classifier": "3 of 5 layers replaced",
    "detector": "taken",
    "transformer": "int8 with",
    "own_policy": "the plan gives the same network: True",
}


def test_every_example_is_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(LEFT)


@pytest.mark.slow
@pytest.mark.parametrize("name", LEFT)
def test_an_example_runs_from_the_root(name: str, tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, f"examples/{name}.py", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=EXAMPLES.parent,
        env=os.environ | {"PYTHONPATH": str(EXAMPLES.parent)},
    )
    assert done.returncode == 0, done.stderr
    assert TOLD[name] in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == LEFT[name]
