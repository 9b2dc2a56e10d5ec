"""Calibration inputs in the forms that users have them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from fxdecomp import FxdecompError
from fxdecomp.calibration import Calibration
from fxdecomp.cli import batches
from fxdecomp.cli.batches import load_calibration, load_pictures
from fxdecomp.cli.loading import drawn
from fxdecomp.cli.words import parse_input
from fxdecomp.graphs.inputs import Arguments, call_arguments

EXAMPLE = torch.zeros(1, 3)
DATA = torch.arange(120.0).reshape(40, 3)
PAIRS = TensorDataset(DATA, torch.zeros(40, dtype=torch.int64))
GIVEN = {
    "a tensor": lambda: DATA,
    "an array of doubles": lambda: DATA.double().numpy(),
    "a loader of pairs": lambda: DataLoader(PAIRS, batch_size=16),
    "pairs of arrays": lambda: ((DATA[i : i + 16].double().numpy(), [0]) for i in (0, 16, 32)),
    "a calibration": lambda: Calibration(torch.split(DATA, 16)),
}


@pytest.mark.parametrize("kind", GIVEN)
def test_every_form_gives_the_same_batches(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.cli_models.batches", GIVEN[kind])
    found = load_calibration("tests.cli_models:batches", EXAMPLE)
    assert found is not None
    assert all(isinstance(batch, Tensor) and batch.dtype == torch.float32 for batch in found.batches)
    sizes = [16, 16, 8] if kind in {"a loader of pairs", "pairs of arrays", "a calibration"} else [5] * 8
    assert [len(batch) for batch in found.batches] == sizes  # type: ignore[arg-type]
    assert torch.equal(torch.cat(list(found.batches)), DATA)  # type: ignore[arg-type]


def test_a_network_of_two_inputs_keeps_both_and_their_types(monkeypatch: pytest.MonkeyPatch) -> None:
    example = (torch.zeros(1, 3), torch.zeros(1, dtype=torch.int32))
    given = [(DATA, torch.zeros(40, dtype=torch.int64), ["a label"])]
    monkeypatch.setattr("tests.cli_models.batches", lambda: given)
    found = load_calibration("tests.cli_models:batches", example)
    assert found is not None
    ((first, second),) = found.batches
    assert (first.dtype, second.dtype) == (torch.float32, torch.int32)
    for batch in ((DATA, DATA > 60), {"mask": DATA > 60, "x": DATA, "labels": DATA}):
        monkeypatch.setattr("tests.cli_models.batches", lambda given=batch: [given])
        example = Arguments((torch.zeros(1, 3),), {"mask": torch.zeros(1, 3, dtype=torch.bool)})
        found = load_calibration("tests.cli_models:batches", example)
        assert found is not None
        ((positional,), keyword), *_ = map(call_arguments, found.batches)
        assert torch.equal(positional, DATA)
        assert list(keyword) == ["mask"]
    named = {"ids": torch.zeros(2, 4, dtype=torch.int64), "labels": torch.zeros(2)}
    monkeypatch.setattr("tests.cli_models.batches", lambda: [named])
    found = load_calibration("tests.cli_models:batches", {"ids": torch.zeros(1, 4, dtype=torch.int64)})
    assert found is not None
    assert [list(batch) for batch in found.batches] == [["ids"]]  # type: ignore[call-overload]


def test_no_more_than_a_limit_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MOST", 20)

    def endless() -> object:
        while True:
            yield DATA[:8]

    for given, count in ((endless, 24), (lambda: DATA, 20)):
        monkeypatch.setattr("tests.cli_models.batches", given)
        found = load_calibration("tests.cli_models:batches", EXAMPLE)
        assert found is not None
        assert sum(len(batch) for batch in found.batches) == count  # type: ignore[arg-type]


def test_files_of_arrays_give_inputs_by_name_or_in_order(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", DATA.double().numpy())
    found = load_calibration(str(tmp_path / "one.npy"), EXAMPLE)
    assert found is not None
    assert torch.equal(torch.cat(list(found.batches)), DATA)  # type: ignore[arg-type]
    np.savez(tmp_path / "two.npz", mask=np.ones((20, 4), bool), ids=np.arange(80).reshape(20, 4))
    ids, mask = torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.bool)
    found = load_calibration(str(tmp_path / "two.npz"), {"ids": ids, "mask": mask})
    assert found is not None
    first = next(iter(found.batches))
    assert isinstance(first, dict)
    assert first["ids"][0].tolist() == [0, 1, 2, 3]
    found = load_calibration(str(tmp_path / "two.npz"), (mask, ids))
    assert found is not None
    args, _ = call_arguments(next(iter(found.batches)))
    assert [value.dtype for value in args] == [torch.bool, torch.int64]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"nothing"), "cannot be read as arrays"),
        (lambda path: np.savez(path, a=np.zeros((3, 2)), b=np.zeros((4, 2))), "wanted one array per input"),
        (lambda path: np.savez(path, a=np.array([{}], dtype=object)), "cannot be read as arrays"),
    ],
)
def test_a_file_that_holds_no_inputs_is_named(tmp_path: Path, write: object, message: str) -> None:
    path = tmp_path / "data.npz"
    write(path)  # type: ignore[operator]
    with pytest.raises(FxdecompError, match=f"data.npz.*{message}"):
        load_calibration(str(path), EXAMPLE)


def test_a_loader_that_raises_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> object:
        yield DATA
        raise RuntimeError("no such picture")

    monkeypatch.setattr("tests.cli_models.batches", broken)
    with pytest.raises(FxdecompError, match=r"batches raised RuntimeError: no such picture"):
        load_calibration("tests.cli_models:batches", EXAMPLE)


def test_pictures_become_batches_as_the_network_takes_them(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    Image.new("RGB", (8, 6), (255, 0, 51)).save(tmp_path / "a.png")
    Image.new("L", (30, 30), 102).save(tmp_path / "deeper" / "b.JPG")
    (tmp_path / "notes.txt").write_text("no picture")
    found = load_pictures(tmp_path, torch.zeros(1, 3, 4, 5), mean=(0.5, 0.0, 0.0), std=(0.5,))
    batch = torch.cat(list(found.batches))  # type: ignore[arg-type]
    assert batch.shape == (2, 3, 4, 5)
    assert batch[0, :, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.4])
    assert batch[1, :, 0, 0].tolist() == pytest.approx([-0.2, 0.8, 0.8], abs=0.01)
    grey = load_pictures(tmp_path, torch.zeros(1, 1, 4, 5), size=(7, 9))
    assert next(iter(grey.batches)).shape == (1, 1, 7, 9)  # type: ignore[union-attr]


def test_pictures_that_cannot_be_meant_are_told(tmp_path: Path) -> None:
    square = torch.zeros(1, 3, 4, 4)
    for example, options, message in (
        (square, {}, "holds no pictures"),
        (torch.zeros(1, 8), {}, r"inputs \[N, 1 or 3, H, W\]; this one is \[1, 8\]"),
        (square, {"mean": (0.1, 0.2)}, "one number or 3"),
        (square, {"std": (0.0,)}, "no std is 0"),
    ):
        with pytest.raises(FxdecompError, match=message):
            load_pictures(tmp_path, example, **options)  # type: ignore[arg-type]
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(FxdecompError, match=r"broken\.png cannot be read as a picture"):
        load_pictures(tmp_path, square)


def test_inputs_in_words_are_drawn_in_their_range() -> None:
    ids = drawn([parse_input("2x5:3..4")])
    assert isinstance(ids, tuple)
    assert set(ids[0].flatten().tolist()) == {3, 4}
    named = drawn([parse_input("2x3"), parse_input("mask=2x5:bool"), parse_input("w=1:float16")])
    assert isinstance(named, Arguments)
    assert named.positional[0].shape == (2, 3)
    assert {name: value.dtype for name, value in named.keyword.items()} == {
        "mask": torch.bool,
        "w": torch.float16,
    }


@pytest.mark.parametrize("text", ["1x3xa", "0x3", "1x3:5..2", "1x3:complex64", "=1x3", "1x3:"])
def test_inputs_that_cannot_be_meant_are_refused(text: str) -> None:
    with pytest.raises(FxdecompError):
        parse_input(text)
