"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fxdecomp.errors import FxdecompError


class OutputError(FxdecompError, ValueError):
    """A file that cannot be written where it was asked for."""


def check_folder(folder: Path) -> None:
    """Raise `OutputError` where a folder is not there and cannot be made either."""
    nearest = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        why = "cannot be written to" if nearest.is_dir() else "is a file, where a folder is wanted"
        raise OutputError(f"{nearest} {why}; name another folder")


def check_file(path: Path) -> None:
    """Raise `OutputError` where a file could not be written, before the work on what it is to hold."""
    if not path.parent.is_dir():
        raise OutputError(f"{path}: the folder {path.parent} does not exist; create it first")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path} cannot be written; name another file")


def check_replaces_none(written: Iterable[Path], read: Iterable[Path]) -> None:
    """Raise `OutputError` where a file that is going to be written is one of those that are read."""
    given = [path for path in read if path.exists()]
    for path in written:
        if path.exists() and any(path.samefile(other) for other in given):
            raise OutputError(f"{path} is read here and would be replaced; name another folder with -o")


def write_text(path: Path, text: str) -> None:
    """Write a text file through a temporary one in the same folder, moved into place in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")
