"""Files that appear whole or not at all."""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

from fxdecomp.errors import FxdecompError

_HOST = re.sub(r"\W", "-", socket.gethostname())[:40] or "host"
_DRAFT = re.compile(rf"\..*\.{re.escape(_HOST)}\.(\d+)\.[0-9a-f]{{12}}\.part", re.DOTALL)
_CLEARED: set[Path] = set()
"""Folders that this process has rid of the drafts of others."""


class OutputError(FxdecompError, ValueError):
    """A file that cannot be written where it was asked for."""


class WriteError(FxdecompError, OSError):
    """A file that could not be written to its end, as on a full disk."""


def check_folder(folder: Path) -> None:
    """Raise `OutputError` where a folder is not there and cannot be made either."""
    nearest = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        why = "cannot be written to" if nearest.is_dir() else "is a file, where a folder is wanted"
        raise OutputError(f"{nearest} {why}; name another folder")


def check_file(path: Path) -> None:
    """Raise `OutputError` where a file could not be written, before the work on what it is to hold."""
    if _is_written_into(path):
        if not os.access(path, os.W_OK):
            raise OutputError(f"{path} cannot be written to; name another file")
        return
    place = _place(path)
    if not place.parent.is_dir():
        parent = place.parent if path.is_symlink() else path.parent
        raise OutputError(f"{path}: the folder {parent} does not exist; create it first")
    if place.exists() and not place.is_file():
        kind = "a folder" if place.is_dir() else "neither a file nor a pipe"
        raise OutputError(f"{path} cannot be written; name another file: this is {kind}")
    if not os.access(place.parent, os.W_OK):
        raise OutputError(f"{path} cannot be written; name another file: nothing can be made in its folder")


def check_replaces_none(written: Iterable[Path], read: Iterable[Path]) -> None:
    """Raise `OutputError` where a file that is going to be written is one of those that are read."""
    given = [path for path in read if path.exists()]
    for path in written:
        if path.exists() and any(path.samefile(other) for other in given):
            raise OutputError(f"{path} is read here and would be replaced; name another folder with -o")


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        WriteError: The disk is full, or the file cannot be written; what was there before is still there.
    """
    with whole_file(path) as part:
        part.write(text.encode())


def write_json(path: Path, data: Any) -> None:
    """Write JSON, whole or not at all.

    Raises:
        WriteError: As of `write_text`.
    """
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The data of a JSON file.

    Raises:
        OSError: It cannot be read.
        ValueError: It holds no JSON, or JSON nested beyond all use.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("its JSON is nested too deep") from error


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which gets its name in one step when the block ends, and is gone where it fails.

    Args:
        path: Where it is to appear; see `publish`.

    Raises:
        WriteError: It cannot be written to the end.
    """
    with _saying_where(path), beside(path, "file") as part:
        with part.open("xb") as file:
            yield file
        publish(part, path)


class FileForTorch(io.RawIOBase):
    """A file that torch writes to: its C++ ends the process where a write fails, so the failure is kept.

    Args:
        file: Where the bytes go.

    Attributes:
        failure: The first failure, None while all went well.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Write, or forget what cannot be written."""
        if self.failure is None:
            try:
                return self._file.write(data)
            except OSError as error:
                self.failure = error
        return len(data)

    def writable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """As torch asks: it goes to the beginning when all is written."""
        return True

    def seek(self, place: int, whence: int = 0) -> int:
        """Nothing: all is written in one go."""
        return 0


def write_with_torch(path: Path, save: Callable[[Any], object]) -> None:
    """Let torch write a file, whole or not at all.

    Args:
        path: Where it is to appear.
        save: Writes to the file object that it gets.

    Raises:
        WriteError: It cannot be written to the end.
    """
    with whole_file(path) as part:
        file = FileForTorch(part)
        save(file)
        if file.failure is not None:
            raise file.failure
        part.flush()
        os.fsync(part.fileno())


@contextmanager
def beside(path: Path, kind: Literal["file", "folder"] = "folder") -> Iterator[Path]:
    """A place for a draft, on the same disk and of this run alone; gone afterwards.

    Its name tells host and process. What killed runs on this host left in the folder is cleared away.

    Args:
        path: What the draft is to become.
        kind: A name that is free, or an empty folder.
    """
    place = _place(path)
    folder = Path(tempfile.gettempdir()) if _is_written_into(path) else place.parent
    if kind == "folder" or folder not in _CLEARED:  # thousands of measured times lie in one folder
        _CLEARED.add(folder)
        _clear_left(folder)
    draft = folder / f".{place.name[:100]}.{_HOST}.{os.getpid()}.{secrets.token_hex(6)}.part"
    if kind == "folder":
        draft.mkdir(mode=0o700)
    try:
        yield draft
    finally:
        if kind == "folder":
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)


def drafts_left(folder: Path) -> list[Path]:
    """The drafts in a folder of runs that are no more on this host; none where it cannot be read."""
    try:
        names = [entry.name for entry in os.scandir(folder)]
    except OSError:
        return []
    owned = ((name, _DRAFT.fullmatch(name)) for name in names)
    return [folder / name for name, owner in owned if owner is not None and not _runs(int(owner[1]))]


def publish(draft: Path, path: Path) -> None:
    """Give a finished file its name, in one step.

    A link stays a link, and its target is what is replaced. A device or a pipe is written to.
    """
    if _is_written_into(path):
        with draft.open("rb") as source, path.open("wb") as target:
            shutil.copyfileobj(source, target)
    else:
        draft.replace(_place(path))


@contextmanager
def _saying_where(path: Path) -> Iterator[None]:
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(
            f"{path} cannot be written: {error.strerror or error}; nothing was left of it"
        ) from error


def _place(path: Path) -> Path:
    """Where a file really lies: behind a link, its target."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path.absolute()


def _is_written_into(path: Path) -> bool:
    """Whether a path is a device or a pipe, or names an open file of a process."""
    try:
        kind = path.stat().st_mode
    except OSError:
        return False
    named_by_process = os.name == "posix" and path.absolute().parts[1:2] in (("dev",), ("proc",))
    return stat.S_ISCHR(kind) or stat.S_ISFIFO(kind) or named_by_process


def _clear_left(folder: Path) -> None:
    for entry in drafts_left(folder):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    """Whether there is such a process; where that cannot be asked without harm, as on Windows, yes."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
