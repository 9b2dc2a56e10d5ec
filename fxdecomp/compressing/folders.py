"""A folder of results that takes its place as a whole."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fxdecomp.files import WriteError, beside, drafts_left

_BEFORE = "before"
"""Folder in a draft for the files of the earlier run, while these are moved out of the way."""
_REPLACED = "replaced"
"""Its name once all are: from then on the new files take their places."""


@contextmanager
def whole_folder(folder: Path, earlier: Iterable[str] = ()) -> Iterator[Path]:
    """A draft folder, whose files get their place in `folder` together when the block ends.

    Where the block, or the change of places, fails or is interrupted, the folder is as it was. A process that
    is killed in the midst of the change leaves it to the next run in that folder, which ends it first, or
    takes it back. Files in the folder that are no part of a run stay.

    Args:
        folder: Made where it does not exist.
        earlier: Names of the files of an earlier run: those that the new run has not written go.

    Raises:
        WriteError: The files cannot be put there.
    """
    made = [each for each in (folder, *folder.absolute().parents) if not each.exists()]
    try:
        with _naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for left in drafts_left(folder):
                _settle(left, folder)
        with beside(folder / "run") as draft:  # inside: the next run in this folder clears what a kill leaves
            yield draft
            with _naming(folder):
                _take_places(draft, folder, earlier)
    except BaseException:
        for empty in made:
            with suppress(OSError):
                empty.rmdir()
        raise


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteError(f"{folder}: {error.strerror or error}; the folder is as it was before") from error


def _take_places(draft: Path, folder: Path, earlier: Iterable[str]) -> None:
    """Move the files of a draft into a folder; all, or none."""
    new = sorted(entry.name for entry in draft.iterdir())
    before, replaced = draft / _BEFORE, draft / _REPLACED
    before.mkdir()
    try:
        for name in sorted({*earlier, *new}):
            place = _target(folder / name)
            if place.is_file():
                place.replace(before / name)
        before.replace(replaced)
        for name in new:
            (draft / name).replace(_target(folder / name))
    except BaseException:
        for name in new:
            if not (draft / name).exists():
                _target(folder / name).replace(draft / name)
        _move(replaced if replaced.exists() else before, folder)
        raise


def _settle(draft: Path, folder: Path) -> None:
    """End the change of places that a killed run was at, or take it back where nothing new has its place."""
    if (draft / _REPLACED).is_dir():
        _move(draft, folder)
    elif (draft / _BEFORE).is_dir():
        _move(draft / _BEFORE, folder)


def _move(source: Path, folder: Path) -> None:
    for entry in source.iterdir():
        if entry.is_file():
            entry.replace(_target(folder / entry.name))


def _target(path: Path) -> Path:
    """Where a file really lies: a link stays a link."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path
