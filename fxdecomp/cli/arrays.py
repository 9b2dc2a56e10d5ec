"""Files of arrays: `.npz` and `.npy`, of which nothing is unpickled."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read_arrays(path: Path, only: str) -> dict[str, NDArray[Any]]:
    """The arrays of a file by name.

    Args:
        path: The file.
        only: The name of the array in a `.npy` file, which has none.

    Raises:
        ValueError: It cannot be read, or holds anything but arrays of numbers; says why.
    """
    try:
        found: Any = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return {only: found}
        with found:
            named = {name: found[name] for name in found.files}
    except (OSError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    others = [name for name, value in named.items() if not isinstance(value, np.ndarray)]
    if others:
        raise ValueError(f"{others[0]!r} in it is no array")
    return named
