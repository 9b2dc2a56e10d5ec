"""Tries a wheel as a new user has it: an environment with the wheel, what it asks for, and nothing else.

Tried: that the wheel holds what it should, that the declared requirements (and those of the extra `cpu`) are
all that it imports, and that the command works outside the checkout. Not tried: that pip finds and downloads
the requirements. They are links into the environment that runs this, so that it takes seconds, not minutes.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
import venv
from importlib.metadata import distribution
from pathlib import Path
from zipfile import ZipFile

from packaging.requirements import Requirement

NETWORK = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3)), torch.randn(1, 3, 12, 12)
"""
WRITTEN = {"small.onnx", "small.pt2", "report.html", "report.json", "policy.toml", "graph.diff"}


def main(wheel: Path) -> None:
    """Install the wheel, and use it."""
    with ZipFile(wheel) as archive:
        names = archive.namelist()
    for wanted in ("fxdecomp/py.typed", "licenses/LICENSE", "templates/page.css"):
        assert any(name.endswith(wanted) for name in names), f"{wanted} is not in {wheel}"
    assert all(name.startswith(("fxdecomp/", "fxdecomp-")) for name in names), names
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder).resolve()
        python = environment(work / "environment", wheel)
        (work / "mynets.py").write_text(NETWORK)
        fxdecomp = [str(python.parent / "fxdecomp")]
        code = "import fxdecomp; print(fxdecomp.__version__, fxdecomp.__file__)"
        told = run(work, str(python), "-W", "error", "-c", code)
        assert str(work) in told, told
        start = time.perf_counter()
        assert run(work, *fxdecomp, "--version").split()[1] == told.split()[0]
        assert "compress" in run(work, *fxdecomp, "--help")
        print(f"--version and --help took {time.perf_counter() - start:.2f} s together")
        run(work, *fxdecomp, "inspect", "mynets:net")
        run(work, *fxdecomp, "compress", "mynets:net", "--method", "tucker2", "--rank", "0.5", "-o", "out")
        assert {path.name for path in (work / "out").iterdir()} >= WRITTEN
        assert "tucker2" in run(work, *fxdecomp, "inspect", "out/small.onnx")
    print(f"{wheel.name}: tried with {sys.version.split()[0]}")


def environment(folder: Path, wheel: Path) -> Path:
    """A new environment with the wheel and links to its requirements; the path of its python."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    packages = next(folder.glob("lib/python*/site-packages"))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-deps",
        str(wheel),
    ]
    subprocess.run(pip, check=True)
    (metadata,) = packages.glob("fxdecomp-*.dist-info/METADATA")
    asked = re.findall(r"^Requires-Dist: (.+)$", metadata.read_text(), re.MULTILINE)
    for name in closure([Requirement(line) for line in asked], "cpu"):
        link(name, packages)
    return python


def closure(requirements: list[Requirement], *extras: str) -> set[str]:
    """The names of all that is required, and is required by that."""
    found: set[str] = set()
    waiting = [(requirement, extras or ("",)) for requirement in requirements]
    while waiting:
        requirement, chosen = waiting.pop()
        marker = requirement.marker
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in chosen):
            continue
        there = distribution(requirement.name)
        assert requirement.specifier.contains(there.version, prereleases=True), (requirement, there.version)
        if requirement.name not in found:
            found.add(requirement.name)
            waiting += [
                (Requirement(line), tuple(requirement.extras) or ("",)) for line in there.requires or ()
            ]
    return found


def link(name: str, packages: Path) -> None:
    """Links to the files and folders of an installed distribution."""
    there = distribution(name)
    for top in {Path(str(file)).parts[0] for file in there.files or ()} - {"..", "__pycache__"}:
        target = packages / top
        if not target.exists():
            target.symlink_to(Path(str(there.locate_file(top))))


def run(folder: Path, *command: str) -> str:
    """What a command prints; its whole output where it fails."""
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=folder, env=alone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]))
