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

from fxdecomp.files import write_json

FOLDER_VARIABLE = "FXDECOMP_CACHE_DIR"
"""Environment variable that names another folder."""

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where times are kept: `$FXDECOMP_CACHE_DIR`, else the user's cache folder of this platform."""
    return Path(os.environ.get(FOLDER_VARIABLE) or platformdirs.user_cache_path("fxdecomp")) / "latency"


@dataclass(frozen=True, slots=True)
class LatencyCache:
    """Times in seconds by what was measured and where.

    Attributes:
        folder: Where the files are; made when the first time is stored.
    """

    folder: Path

    def get(self, key: Mapping[str, Any]) -> float | None:
        """The stored time, None where there is none or its file is damaged."""
        found = _read(self._path(key))
        return None if found is None or found[0] != key else found[1]

    def put(self, key: Mapping[str, Any], time_s: float) -> None:
        """Store a time; says in the log where that cannot be done."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self._path(key), {"key": key, "time_s": time_s})
        except OSError as error:
            _log.warning("the time of a layer cannot be kept in %s: %s", self.folder, error)

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

    def _entries(self) -> Iterator[tuple[dict[str, Any], float]]:
        return (found for path in self._files() if (found := _read(path)) is not None)

    def _path(self, key: Mapping[str, Any]) -> Path:
        text = json.dumps(key, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _where(key: Mapping[str, Any]) -> str:
    words = [str(key.get(name, "?")) for name in ("provider", "version", "processor")]
    return f"{', '.join(words)}, {key.get('threads', '?')} thread(s)"


def _read(path: Path) -> tuple[dict[str, Any], float] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        key, time_s = data["key"], float(data["time_s"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return (key, time_s) if isinstance(key, dict) and math.isfinite(time_s) and time_s > 0 else None
