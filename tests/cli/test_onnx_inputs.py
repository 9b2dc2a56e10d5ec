"""Example inputs of ONNX files on the command line: shapes, ranges by name, files of arrays."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from fxdecomp.cli.loading import load_model
from fxdecomp.cli.references import ModelReferenceError
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
