"""Folders of results that take their place as a whole."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fxdecomp.compressing import folders
from fxdecomp.compressing.folders import whole_folder
from fxdecomp.files import WriteError


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def fill(folder: Path, earlier: list[str], *, error: type[BaseException] | None = None, **files: str) -> None:
    with whole_folder(folder, earlier) as draft:
        for name, text in files.items():
            (draft / name).write_text(text)
        if error is not None:
            raise error


def test_a_new_run_takes_the_place_of_the_earlier_one_and_of_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "out"
    with whole_folder(folder) as draft:
        (draft / "a").write_text("1")
        (draft / "b").write_text("1")
        assert [path.name for path in folder.iterdir() if not path.name.startswith(".")] == []
    (folder / "mine").write_text("the user's")
    with whole_folder(folder, ["a", "b", "absent"]) as draft:
        (draft / "b").write_text("2")
        (draft / "c").write_text("2")
        assert {"a", "b", "mine"} < {path.name for path in folder.iterdir()}
        assert (folder / "b").read_text() == "1"
    assert texts(folder) == {"b": "2", "c": "2", "mine": "the user's"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_run_that_fails_leaves_the_folder_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    (old / "a").write_text("1")
    for folder in (old, new):
        with pytest.raises(error):
            fill(folder, ["a"], a="2", error=error)
    assert texts(old) == {"a": "1"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]


def test_a_change_of_places_that_fails_half_way_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("a", "b", "gone"):
        (folder / name).write_text("1")
    moves: list[Path] = []
    real = Path.replace

    def failing(self: Path, target: Path) -> Path:
        moves.append(self)
        if len(moves) == 6:  # three are out of the way, which is noted, and one has its place
            raise PermissionError(13, "Permission denied")
        return real(self, target)

    monkeypatch.setattr(folders.Path, "replace", failing)
    with pytest.raises(WriteError, match="the folder is as it was before"):
        fill(folder, ["gone"], a="2", b="2")
    assert texts(folder) == {"a": "1", "b": "1", "gone": "1"}
    (folder / "c").mkdir()
    with pytest.raises(WriteError):
        fill(folder, [], a="2", c="2")
    assert (folder / "a").read_text() == "1"


_KILLED = """
import os, signal, sys
from pathlib import Path
from fxdecomp.compressing import folders
folders._take_places = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
with folders.whole_folder(Path(sys.argv[1])) as draft:
    (draft / "a").write_text("1")
"""


def test_what_a_killed_run_left_of_a_new_folder_goes_with_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "out"
    died = subprocess.run([sys.executable, "-c", _KILLED, str(folder)], check=False)
    assert died.returncode == -signal.SIGKILL
    fill(folder, [], a="2")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "deep", "out"]


_KILLED_BETWEEN = """
import os, pathlib, signal, sys
from fxdecomp.compressing.folders import whole_folder
real, moves = pathlib.Path.replace, 0

def replace(self, target):
    global moves
    if moves == count:
        os.kill(os.getpid(), signal.SIGKILL)
    moves += 1
    return real(self, target)

pathlib.Path.replace = replace
for count in range(6):
    child = os.fork()
    if child == 0:
        with whole_folder(pathlib.Path(sys.argv[1], str(count)), ["a", "gone"]) as draft:
            (draft / "a").write_text("2")
            (draft / "b").write_text("2")
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_change_of_places_that_was_killed_is_ended_or_taken_back_by_the_next_run(tmp_path: Path) -> None:
    for count in range(6):
        (tmp_path / str(count)).mkdir()
        for name in ("a", "gone", "mine"):
            (tmp_path / str(count) / name).write_text("1")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _KILLED_BETWEEN, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert [int(code) for code in run.stdout.split()] == [-signal.SIGKILL] * 5 + [0]
    old, new = {"a": "1", "gone": "1", "mine": "1"}, {"a": "2", "b": "2", "mine": "1"}
    for count in range(6):
        with pytest.raises(KeyboardInterrupt):
            fill(tmp_path / str(count), [], error=KeyboardInterrupt)
        assert texts(tmp_path / str(count)) == (old if count < 3 else new)


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    folder, target = tmp_path / "out", tmp_path / "elsewhere"
    folder.mkdir()
    target.write_text("1")
    (folder / "a").symlink_to(target)
    with whole_folder(folder) as draft:
        (draft / "a").write_text("2")
    assert (folder / "a").is_symlink()
    assert target.read_text() == "2"
