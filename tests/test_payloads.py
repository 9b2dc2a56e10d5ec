"""A crafted file of every kind that is read: nothing of it runs, and one error says what is wrong.

`.pt2` archives have their own, in `tests/tracing/test_archives.py`.
"""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import fxdecomp
from fxdecomp import FxdecompError, Plan, Policy
from fxdecomp.cli.batches import load_calibration, load_pictures
from fxdecomp.cli.loading import drawn
from fxdecomp.cli.words import parse_input
from fxdecomp.compressing import LoadedModel, compress_to
from fxdecomp.export import BenchmarkReport, read_metadata, to_onnx
from fxdecomp.importing import from_onnx
from fxdecomp.latency.cache import LatencyCache, Taken
from fxdecomp.recovery.checkpoints import load_checkpoint
from fxdecomp.searching.trials import Trial, restored_trials, save_state
from tests.nets import image
from tests.test_damaged_data import Payload, altered, places

GM = fxdecomp.trace(nn.Sequential(nn.Linear(16, 16)), image(1, 16))
TOLD = fxdecomp.report(fxdecomp.transform(GM, Policy("svd", 4)))
PLAN, RECORD = TOLD.plan, TOLD.record
SETTINGS = {"max_drop": 1.0}
KEY = {"provider": "CPU", "kernel": 3}


def code(mark: Path) -> str:
    """An expression that leaves a file where anybody evaluates it."""
    return f"__import__('pathlib').Path({str(mark)!r}).touch()"


def texts(data: Any) -> list[tuple[Any, ...]]:
    """The places of texts and numbers in JSON data."""
    found = []
    for place in places(data):
        value = data
        for key in place:
            value = value[key]
        if not isinstance(value, dict | list):
            found.append(place)
    return found


def state(path: Path) -> Any:
    trial = Trial(0.5, 128, 144, 0.5, accepted=True, time_share=0.7, record=RECORD)
    save_state(path, SETTINGS, [trial])
    return json.loads(path.read_text())


def benchmarked(path: Path) -> Any:
    to_onnx(GM, image(1, 16), path.with_name("a.onnx"))
    fxdecomp.export.benchmark({"a": path.with_name("a.onnx")}, rounds=2).save(path)
    return json.loads(path.read_text())


def cached(path: Path) -> Any:
    cache = LatencyCache(path.with_name("cache"))
    cache.put(KEY, Taken(1.0))
    (file,) = path.with_name("cache").iterdir()
    return json.loads(file.read_text())


def read_cached(path: Path) -> None:
    cache = LatencyCache(path.with_name("cache"))
    (file,) = path.with_name("cache").iterdir()
    file.write_text(path.read_text())
    cache.get(KEY), cache.summary()


JSON: dict[str, tuple[Callable[[Path], Any], Callable[[Path], object]]] = {
    "plan": (
        lambda path: PLAN.to_dict(),
        lambda path: fxdecomp.transform(GM, Policy.from_plan(Plan.load(path))),
    ),
    "state": (state, lambda path: restored_trials(path, SETTINGS)),
    "benchmark": (benchmarked, lambda path: str(BenchmarkReport.load(path))),
    "cache": (cached, read_cached),
}


@pytest.mark.parametrize("kind", JSON)
def test_text_that_is_code_is_text(kind: str, tmp_path: Path) -> None:
    make, read = JSON[kind]
    path, mark = tmp_path / "data.json", tmp_path / "mark"
    good, refused = make(path), 0
    for place in texts(good):
        path.write_text(json.dumps(altered(good, place, code(mark))))
        try:
            read(path)
        except FxdecompError:
            refused += 1
    assert not mark.exists()
    assert refused or kind == "cache"  # what is damaged there is measured again


@pytest.mark.parametrize(
    "text",
    [
        "method = CODE",
        "method = 'svd'\nrank = CODE",
        "method = 'svd'\nrank = {name = CODE}",
        "method = 'svd'\nexclude = [CODE]",
        "budget = CODE",
        "budget = {name = CODE}",
        "method = 'svd'\nmultiple_of = CODE",
        "[[rules]]\npattern = CODE\nmethod = 'svd'",
    ],
)
def test_a_policy_of_code_is_text(text: str, tmp_path: Path) -> None:
    path, mark = tmp_path / "policy.toml", tmp_path / "mark"
    path.write_text(text.replace("CODE", json.dumps(code(mark))))
    with pytest.raises(FxdecompError):
        fxdecomp.transform(GM, Policy.load(path))
    assert not mark.exists()


def evil_array(path: Path, mark: Path) -> None:
    """A file of arrays with an object that numpy would unpickle."""
    array = np.empty(1, dtype=object)
    array[0] = Payload(mark)
    np.savez(path, input=array) if path.suffix == ".npz" else np.save(path, array)


@pytest.mark.parametrize("name", ["evil.npz", "evil.npy"])
@pytest.mark.parametrize("use", ["calibration", "inputs"])
def test_arrays_of_objects_are_refused(name: str, use: str, tmp_path: Path) -> None:
    path, mark = tmp_path / name, tmp_path / "mark"
    evil_array(path, mark)
    uses = {
        "calibration": lambda: load_calibration(str(path), image(1, 16)),
        "inputs": lambda: drawn([parse_input(str(path))]),
    }
    with pytest.raises(FxdecompError, match=rf"{name} cannot be read as arrays: Object arrays"):
        uses[use]()
    assert not mark.exists()


PICKLES: dict[str, Callable[[Path], object]] = {
    "plan.json": Plan.load,
    "policy.toml": Policy.load,
    "state.json": lambda path: restored_trials(path, SETTINGS),
    "bench.json": BenchmarkReport.load,
    "run.ckpt": lambda path: load_checkpoint(path, "of a run"),
    "net.study": lambda path: fxdecomp.study(GM, saved=path),
    "model.pt2": lambda path: fxdecomp.trace(path, image(1, 16)),
    "model.onnx": from_onnx,
    "data.npz": lambda path: load_calibration(str(path), image(1, 16)),
    "data.npy": lambda path: load_calibration(str(path), image(1, 16)),
}


@pytest.mark.parametrize("form", ["pickle", "torch"])
@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_in_the_place_of_any_file_is_refused(name: str, form: str, tmp_path: Path) -> None:
    path, mark = tmp_path / name, tmp_path / "mark"
    with path.open("wb") as file:
        (pickle.dump if form == "pickle" else torch.save)(Payload(mark), file)
    with pytest.raises(FxdecompError, match=name):
        PICKLES[name](path)
    assert not mark.exists()


def test_a_picture_that_is_a_program_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow goes by the bytes, and has Ghostscript run an EPS."""
    from PIL import EpsImagePlugin

    mark, program = tmp_path / "mark", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {mark}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    (tmp_path / "pictures").mkdir()
    page = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "pictures" / "a.png").write_text(page)
    with pytest.raises(FxdecompError, match=r"a\.png cannot be read as a picture"):
        load_pictures(tmp_path / "pictures", image(1, 3, 8, 8))
    assert not mark.exists()


def test_no_file_of_options_says_what_is_trusted(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from fxdecomp.cli.app import app

    (tmp_path / "run.toml").write_text("trust = true\n")
    done = CliRunner().invoke(app, ["compress", "a.pt2", "--config", str(tmp_path / "run.toml")])
    assert isinstance(done.exception, FxdecompError)
    assert "pass --trust yourself" in str(done.exception)


def test_an_onnx_file_loads_no_library(tmp_path: Path) -> None:
    """Operators of other libraries are not looked for, whatever the file says of them."""
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (1, 8))
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (1, 8))
    node = onnx.helper.make_node("Run", ["x"], ["y"], domain="evil", library=str(tmp_path / "evil.so"))
    graph = onnx.helper.make_graph([node], "g", [value], [out])
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("evil", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.helper.set_model_props(model, {"custom_ops_library": str(tmp_path / "evil.so")})
    onnx.save(model, str(tmp_path / "a.onnx"))
    with pytest.raises(FxdecompError, match=r"a\.onnx cannot be read as an ONNX model"):
        from_onnx(tmp_path / "a.onnx")
    assert read_metadata(tmp_path / "a.onnx") is None


def test_a_report_of_an_earlier_run_names_no_files_of_others(tmp_path: Path) -> None:
    """What the last run left goes with the next one; a list of files is no licence to delete others."""
    out, mine = tmp_path / "out", tmp_path / "mine.txt"
    out.mkdir()
    mine.write_text("precious")
    (out / "notes.onnx").write_text("precious")
    (out / "report.json").write_text(json.dumps({"files": ["../mine.txt", str(mine), "notes.onnx", 3, None]}))
    compress_to(LoadedModel(nn.Sequential(nn.Linear(16, 16)), image(1, 16)), Policy("svd", 4), out)
    assert mine.read_text() == (out / "notes.onnx").read_text() == "precious"


def test_an_archive_that_unpacks_outside_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../outside.npy", b"x")
    with pytest.raises(FxdecompError, match=r"data\.npz"):
        load_calibration(str(path), image(1, 16))
    assert not (tmp_path.parent / "outside.npy").exists()
