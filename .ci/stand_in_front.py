"""Another environment finds what this one has, behind what it has itself: `stand_in_front.py BIN/python`."""

import subprocess
import sys
import sysconfig
from pathlib import Path

_ASK = "import sysconfig; print(sysconfig.get_path('purelib'))"

there = subprocess.run([sys.argv[1], "-c", _ASK], check=True, capture_output=True, text=True).stdout.strip()
here = sysconfig.get_path("purelib")
Path(there, "behind.pth").write_text(f"import site; site.addsitedir({here!r})\n", encoding="utf-8")
