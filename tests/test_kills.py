"""Killed processes, and those on full disks, leave no half file, and the next run ends as an unbroken one."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import kills

WORKS = ("--works", "recover", "search")
"""Those that take least; the command has exports and whole folders too."""


@pytest.mark.slow
def test_three_kills_and_two_full_disks() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kills", "--kills", "3", "--full", "2", *WORKS],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("3 kills, 2 full disks, 0 failed\n")


def careless(folder: Path) -> None:
    """Writes under the final name, in two goes, and leaves a draft."""
    path = folder / "plan.json"
    again = path.exists()
    for text in ("{", '"again": true}' if again else "}"):
        with path.open("a" if text != "{" else "w") as file:
            file.write(text)
        (folder / ".draft").touch()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork, where there are threads
def test_a_careless_writer_is_found_out() -> None:
    whole = kills.Unbroken({"plan.json": b"{}"}, 1.0, 2)
    was_killed, wrong = kills.broken(careless, whole, kills.Moment(0, 1.0))
    assert not was_killed
    assert wrong == ["left behind: .draft", "other: plan.json"]
