"""Example inputs of ONNX files on the command line: shapes, ranges by name, files of arrays."""

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from typer.testing import CliRunner

from fxdecomp import ExportError, ParityError
from fxdecomp.calibration import Calibration
from fxdecomp.cli import app
from fxdecomp.cli.batches import as_taken
from fxdecomp.cli.loading import load_model
from fxdecomp.cli.references import ModelReferenceError
from fxdecomp.cli.terminal import spoken
from fxdecomp.cli.words import parse_input
from tests.importing.files import drawn, write


@pytest.fixture
def tokens(tmp_path: Path) -> str:
    """A file that looks tokens up; the length of a text is open."""
    nodes = [helper.make_node("Gather", ["table", "x"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["y"])]
    constants = {"table": drawn(50, 8), "w": drawn(8, 8)}
    path = write(tmp_path / "a.onnx", nodes, constants, shape=(1, "length"), kind=TensorProto.INT64)
    return str(path)


@pytest.mark.parametrize("text", ["1x6", "1x6:40..49", "x=1x6:40..49"])
def test_shapes_and_ranges(text: str, tokens: str) -> None:
    (example,) = load_model(tokens, [parse_input(text)]).example_inputs  # type: ignore[misc]
    assert tuple(example.shape) == (1, 6)
    if ".." in text:
        assert int(example.min()) >= 40


def test_a_file_of_arrays(tokens: str, tmp_path: Path) -> None:
    ids = np.arange(5)[None]
    np.savez(tmp_path / "mine.npz", x=ids)
    np.save(tmp_path / "mine.npy", ids)
    for name in ("mine.npz", "mine.npy"):
        (example,) = load_model(tokens, [parse_input(str(tmp_path / name))]).example_inputs  # type: ignore[misc]
        assert example.tolist() == ids.tolist()
    with pytest.raises(ModelReferenceError, match="there is no file"):
        parse_input("nowhere.npz")
    (tmp_path / "bad.npz").write_bytes(b"no arrays")
    with pytest.raises(ModelReferenceError, match="cannot be read as arrays"):
        load_model(tokens, [parse_input(str(tmp_path / "bad.npz"))])


def test_the_seed_is_of_what_is_drawn(tokens: str) -> None:
    for text in ("1x6", "1x6:0..49"):
        drawn_ = [
            load_model(tokens, [parse_input(text)], seed=seed).example_inputs[0].tolist()  # type: ignore[index]
            for seed in (0, 0, 7)
        ]
        assert drawn_[0] == drawn_[1] != drawn_[2]


def test_a_tolerance_of_the_users_own(tmp_path: Path) -> None:
    """A file whose rows add up what a float32 does not hold."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    path = str(write(tmp_path / "a.onnx", nodes, {"w": drawn(512, 32)}, shape=(4, 512)))
    load_model(path)
    with pytest.raises(ParityError, match="tolerance 1e-12 for float32"):
        load_model(path, tolerance=1e-12)
    with pytest.raises(ModelReferenceError, match=r"--tolerance is for \.onnx files"):
        load_model("torch.nn:ReLU", [parse_input("1x2")], tolerance=1e-3)
    told = CliRunner().invoke(app, ["inspect", path, "--tolerance", "0"])
    assert told.exit_code == 2
    assert "wanted a number above 0" in told.output


@pytest.mark.parametrize("name", ["x", "other"])
def test_the_file_is_compared_on_the_calibration(name: str, tokens: str, tmp_path: Path) -> None:
    ids = np.arange(40, dtype=np.int32).reshape(8, 5)
    np.savez(tmp_path / "mine.npz", **{name: ids, "labels": np.arange(8)})
    (example,) = load_model(tokens, calibration=str(tmp_path / "mine.npz")).example_inputs  # type: ignore[misc]
    assert example.tolist() == ids[:1].tolist()
    np.savez(tmp_path / "mine.npz", ids.astype(np.float32))
    (example,) = load_model(
        tokens, [parse_input("1x6")], calibration=str(tmp_path / "mine.npz")
    ).example_inputs  # type: ignore[misc]
    assert tuple(example.shape) == (1, 6)


def test_an_open_length_is_asked_for_in_the_command_lines_words(tokens: str) -> None:
    with pytest.raises(ExportError, match=r"axes \[1\] may have any length.*shapes=\(\(1, 128\),\)") as error:
        load_model(tokens)
    assert spoken(str(error.value)).endswith("give one, such as --input 1x128")


def test_pictures_come_in_batches_that_a_file_takes(tmp_path: Path) -> None:
    """It declares a free batch, and has the batch of its making in a reshape."""
    shape = np.array([1, 8, 16], np.int64)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Reshape", ["a", "s"], ["y"]),
    ]
    path = str(write(tmp_path / "a.onnx", nodes, {"w": drawn(8, 3, 3, 3), "s": shape}, shape=("n", 3, 4, 4)))
    loaded = load_model(path, [parse_input("1x3x4x4")])
    given = Calibration(tuple(torch.randn(9, 3, 4, 4).split(2)))
    taken = as_taken(given, loaded.model, loaded.example_inputs)  # type: ignore[arg-type]
    assert [batch.shape[0] for batch in taken.batches] == [1] * 9
    assert torch.equal(torch.cat(tuple(taken.batches)), torch.cat(tuple(given.batches)))
    assert as_taken(taken, loaded.model, loaded.example_inputs) is taken  # type: ignore[arg-type]
