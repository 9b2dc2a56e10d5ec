"""One network through the whole path, into a folder."""

from fxdecomp.compressing.results import CompressResult, FileOptions, Goal, LoadedModel
from fxdecomp.compressing.running import compress_to, run_files

__all__ = ["CompressResult", "FileOptions", "Goal", "LoadedModel", "compress_to", "run_files"]
