"""References to functions: in modules, in files, with arguments; and what is said where they lead nowhere."""

import sys
from pathlib import Path

import pytest

from fxdecomp.cli.loading import load_model
from fxdecomp.cli.options import checked_reference
from fxdecomp.cli.references import ModelReferenceError, check_model, parse
from fxdecomp.graphs.inputs import call_arguments

NETS = """
import torch
from torch import nn

COUNT = [0]
COUNT[0] += 1

def sized(width=8, *, bias=True):
    return nn.Linear(width, 4, bias=bias), torch.randn(2, width)

class Nets:
    @staticmethod
    def tiny():
        return sized(3)

def helper():
    raise KeyError("weights")

def failing():
    return helper()
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "own nets" / "sizednets.py"
    path.parent.mkdir()
    path.write_text(NETS)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return path


def test_a_folder_in_the_place_of_calibration_is_told_with_what_takes_it(tmp_path: Path) -> None:
    with pytest.raises(ModelReferenceError, match=f"is a folder; of pictures, --images {tmp_path} takes it"):
        checked_reference(str(tmp_path))


@pytest.mark.parametrize(
    ("call", "width", "bias"),
    [
        ("sized", 8, True),
        ("sized()", 8, True),
        ("sized(5)", 5, True),
        ("sized(width=6, bias=False)", 6, False),
    ],
)
def test_a_function_of_a_file_is_called_with_its_arguments(
    nets: Path, call: str, width: int, bias: bool
) -> None:
    loaded = load_model(f"{nets}:{call}")
    (example,), _ = call_arguments(loaded.example_inputs)
    assert example.shape == (2, width)
    assert (loaded.model.bias is not None) == bias


def test_a_file_is_imported_once_and_names_may_have_dots(nets: Path) -> None:
    load_model(f"{nets}:Nets.tiny")
    load_model(f"{nets}:sized")
    assert parse(f"{nets}:COUNT").find() == [1]


def test_an_error_in_the_users_code_is_told_with_its_line(nets: Path) -> None:
    line = NETS.splitlines().index('    raise KeyError("weights")') + 1
    with pytest.raises(
        ModelReferenceError, match=rf"failing\(\) raised KeyError: 'weights' .*py, line {line}\)"
    ):
        load_model(f"{nets}:failing")
    nets.write_text("import math\n1 / 0\n")
    broken = nets.rename(nets.with_name("brokennets.py"))
    with pytest.raises(ModelReferenceError, match=r"raised ZeroDivisionError.*brokennets\.py, line 2"):
        parse(f"{broken}:net").find()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "neither a .pt2 or .onnx file nor of the form"),
        ("mynets:", "neither a .pt2 or .onnx file nor of the form"),
        ("mynets:resnet(50", "neither a .pt2 or .onnx file nor of the form"),
        ("mynets:resnet(size)", "arguments are plain values"),
        ("mynets:resnet(1)(2)", "arguments are plain values"),
        ("absent.py:net", "there is no file absent.py"),
        ("absent.onnx", "there is no file absent.onnx"),
    ],
)
def test_what_can_be_no_model_is_refused_before_anything_is_loaded(text: str, message: str) -> None:
    with pytest.raises(ModelReferenceError) as refused:
        check_model(text)
    assert message in str(refused.value)


def test_names_with_colons_and_brackets_inside_arguments() -> None:
    found = parse("pack.age:make('a:b', (1, 2), sizes=[3])")
    assert (found.place, found.name, found.args) == ("pack.age", "make", ("a:b", (1, 2)))
    assert found.kwargs == {"sizes": [3]}


def test_of_many_names_the_likest_are_told(tmp_path: Path) -> None:
    names = ("first", "second", "third", "fourth", "fifth", "sixth", "acc")
    (tmp_path / "many.py").write_text("".join(f"def {name}():\n    pass\n" for name in names))
    with pytest.raises(ModelReferenceError, match="has no 'accuracy'; it has acc, "):
        parse(f"{tmp_path / 'many.py'}:accuracy").find()
