"""The machine and the versions that a measurement belongs to."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fxdecomp.export.sessions import thread_count

_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve")


def machine() -> dict[str, Any]:
    """Processor, cores, instruction sets that matter to matrix products, and versions, as JSON data."""
    name, flags = platform.processor() or platform.machine(), ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines: dict[str, str] = {}
        for line in info.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            lines[key.strip()] = value.strip()
        name = lines.get("model name", name)
        flags = lines.get("flags", lines.get("Features", ""))
    return {
        "processor": name,
        "cores": os.cpu_count(),
        "cores_of_this_process": thread_count(0),
        "features": [item for item in _FEATURES if item in flags.split()],
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {item: found for item in _PACKAGES if (found := _version(item))},
    }


_RUNTIME = "onnxruntime"
_PACKAGES = ("fxdecomp", "torch", "onnx", _RUNTIME, "onnxruntime-gpu", "onnxruntime-openvino", "numpy")


def _version(package: str) -> str:
    """The version that is imported: of the packages that bring an onnxruntime, several may be in sight."""
    try:
        found = distribution(package)
    except PackageNotFoundError:
        return ""
    module = find_spec(_RUNTIME) if package.startswith(_RUNTIME) else None
    if module is not None and module.origin != str(found.locate_file(f"{_RUNTIME}/__init__.py")):
        return ""
    return found.version
