"""`import fxdecomp` is quick and quiet, and pulls in nothing that only some users need."""

import json
import subprocess
import sys

import pytest

HEAVY = ("onnxruntime", "matplotlib", "typer", "rich", "onnx", "onnxscript", "pytorchcv", "PIL", "jinja2")
SCRIPT = f"""
import json, sys, time
import torch, torch.fx, torch.export._unlift, scipy.optimize
start = time.perf_counter()
import fxdecomp
every = [getattr(fxdecomp, name) for name in fxdecomp.__all__]
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


def loaded_by(*arguments: str) -> tuple[int, set[str]]:
    """The exit code of a command, and the packages that it loaded."""
    code = (
        f"import sys; sys.argv = ['fxdecomp', *{arguments!r}]; from fxdecomp.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stopped:\n    code = stopped.code or 0\n"
        "print('====', code, *(name for name in sys.modules if '.' not in name), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    _, _, told = done.stdout.rpartition("====\n")
    code_line, *modules = told.splitlines()
    return int(code_line), set(modules)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--version"], 0),
        (["--help"], 0),
        (["compress", "--help"], 0),
        (["compress", "--nonsense"], 2),
        (["inspect", "nonsense"], 2),
    ],
)
def test_a_command_that_needs_no_network_loads_no_torch(arguments: list[str], code: int) -> None:
    told, modules = loaded_by(*arguments)
    assert told == code
    assert "fxdecomp" in modules
    assert not {"torch", "scipy", "onnx"} & modules


def test_importing_the_package_loads_torch_when_a_name_is_asked_for() -> None:
    code = (
        "import sys, fxdecomp; first = 'torch' in sys.modules;"
        "fxdecomp.Policy, fxdecomp.calibration.Calibration; print(first, 'torch' in sys.modules);"
        "print(set(fxdecomp.__all__) <= set(dir(fxdecomp)), hasattr(fxdecomp, 'absent'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "True", "False"]
