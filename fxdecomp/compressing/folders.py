"""A folder of results that takes its place as a whole."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fxdecomp.files import WriteError, beside


@contextmanager
def whole_folder(folder: Path, earlier: Iterable[str] = ()) -> Iterator[Path]:
    """A draft folder, whose files get their place in `folder` together when the block ends.

    Where the block, or the change of places, fails or is interrupted, the folder is as it was. Files in it
    that are no part of a run stay.

    Args:
        folder: Made where it does not exist.
        earlier: Names of the files of an earlier run: those that the new run has not written go.

    Raises:
        WriteError: The files cannot be put there.
    """
    made = [each for each in (folder, *folder.absolute().parents) if not each.exists()]
    try:
        with _told(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with beside(folder / "run") as draft:  # inside: the next run in this folder clears what a kill leaves
            yield draft
            with _told(folder):
                _take_places(draft, folder, earlier)
    except BaseException:
        for empty in made:
            with suppress(OSError):
                empty.rmdir()
        raise


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteError(f"{folder}: {error.strerror or error}; the folder is as it was before") from error


def _take_places(draft: Path, folder: Path, earlier: Iterable[str]) -> None:
    """Move the files of a draft into a folder; all, or none."""
    new = sorted(entry.name for entry in draft.iterdir())
    kept = draft / "before"
    kept.mkdir()
    moved: list[tuple[Path, Path]] = []
    try:
        for name in sorted({*earlier, *new}):
            place = _target(folder / name)
            if place.is_file():
                moved.append((place, kept / name))
                place.replace(kept / name)
        for name in new:
            moved.append((draft / name, _target(folder / name)))
            (draft / name).replace(_target(folder / name))
    except BaseException:
        for start, end in reversed(moved):
            if end.exists() and not start.exists():
                end.replace(start)
        raise


def _target(path: Path) -> Path:
    """Where a file really lies: a link stays a link."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path
