"""Measured times on disk: one small file a measurement, so that processes never wait for each other.

A file appears whole or not at all. One that cannot be read is measured again; a folder that cannot be written
costs the measurements, never an error.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from fxdecomp.files import read_json, write_json

FOLDER_VARIABLE = "FXDECOMP_CACHE_DIR"
"""Environment variable that names another folder."""

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where times are kept: `$FXDECOMP_CACHE_DIR`, else the user's cache folder of this platform."""
    return Path(os.environ.get(FOLDER_VARIABLE) or platformdirs.user_cache_path("fxdecomp")) / "latency"


@dataclass(frozen=True, slots=True)
class Taken:
    """A measured time, and the error of it where that is known, in seconds."""

    time_s: float
    error_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LatencyCache:
    """Times by what was measured and where, and the options that were found quickest.

    Attributes:
        folder: Where the files are; made when the first time is stored.
    """

    folder: Path

    def get(self, key: Mapping[str, Any]) -> Taken | None:
        """The stored time, None where there is none or its file is damaged."""
        found = _read(self._path(key))
        return None if found is None or found[0] != key else found[1]

    def put(self, key: Mapping[str, Any], taken: Taken) -> None:
        """Store a time; says in the log where that cannot be done."""
        self._write(key, {"time_s": taken.time_s, "error_s": taken.error_s})

    def options(self, key: Mapping[str, Any]) -> dict[str, str] | None:
        """The stored options, None where there are none or their file is damaged."""
        try:
            data = read_json(self._path(key))
            options = data["options"]
            known = data["key"] == key and all(isinstance(each, str) for each in options.values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        return dict(options) if known else None

    def put_options(self, key: Mapping[str, Any], options: Mapping[str, str]) -> None:
        """Store options; says in the log where that cannot be done."""
        self._write(key, {"options": dict(options)})

    def _write(self, key: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self._path(key), {"key": key, **data})
        except OSError as error:
            _log.warning("what was measured cannot be kept in %s: %s", self.folder, error)

    def summary(self) -> dict[str, int]:
        """Number of times by provider, its version, processor and threads."""
        return dict(Counter(_where(key) for key, _ in self._entries()).most_common())

    def size_bytes(self) -> int:
        """Size of all files."""
        return sum(path.stat().st_size for path in self._files())

    def clear(self) -> int:
        """Delete all times, damaged files too; returns the number of files."""
        files = self._files()
        for path in files:
            path.unlink(missing_ok=True)
        return len(files)

    def _files(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*.json") if path.is_file())

    def _entries(self) -> Iterator[tuple[dict[str, Any], Taken]]:
        return (found for path in self._files() if (found := _read(path)) is not None)

    def _path(self, key: Mapping[str, Any]) -> Path:
        text = json.dumps(key, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _where(key: Mapping[str, Any]) -> str:
    words = [str(key.get(name, "?")) for name in ("provider", "version", "processor")]
    return f"{', '.join(words)}, {key.get('threads', '?')} thread(s)"


def _read(path: Path) -> tuple[dict[str, Any], Taken] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        key, time_s, error_s = data["key"], float(data["time_s"]), float(data.get("error_s", 0.0))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    sane = math.isfinite(time_s) and time_s > 0 and math.isfinite(error_s) and error_s >= 0
    return (key, Taken(time_s, error_s)) if isinstance(key, dict) and sane else None
