"""A CUDA build of torch that runs on the CPU without CUDA's libraries: `without_cuda.py BIN/python`.

PyPI has no other build, and its libraries take 5 GB. Those that are not there are put in their places empty,
and functions are looked up as they are called, which on a machine without a GPU they never are. Needs
readelf and a C compiler.
"""

import re
import subprocess
import sys
from pathlib import Path

_ASK = "import sysconfig; print(sysconfig.get_path('purelib'))"

there = subprocess.run([sys.argv[1], "-c", _ASK], check=True, capture_output=True, text=True).stdout.strip()
libraries = Path(there, "torch", "lib")
wanted: set[str] = set()
for library in libraries.glob("*.so*"):
    told = subprocess.run(["readelf", "-d", library], check=True, capture_output=True, text=True).stdout
    wanted |= set(re.findall(r"NEEDED.*\[(lib(?:cu|nv|nccl)[^\]]*)\]", told))
known = {path.name for folder in ("torch", "nvidia") for path in Path(there, folder).rglob("*.so*")}
for name in sorted(wanted - known):
    command = ["cc", "-shared", f"-Wl,-soname,{name}", "-o", libraries / name, "-x", "c", "/dev/null"]
    subprocess.run(command, check=True)
Path(there, "lazy.pth").write_text("import os, sys; sys.setdlopenflags(os.RTLD_LAZY)\n", encoding="utf-8")
