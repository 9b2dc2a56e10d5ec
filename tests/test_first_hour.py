"""The way of a new user, with networks of one's own in a file: looked at, compressed, run in ONNX Runtime.

An ONNX file with pictures, one for sound, a detector, a transformer, a trained classifier with a metric.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fxdecomp.cli import main

OWN = '''
import functools
import numpy as np
import torch
from torch import nn


class Listener(nn.Module):
    """Waves to one of 12 words: convolutions, a GRU, a head."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(1, 32, 16, 8), nn.ReLU(), nn.Conv1d(32, 64, 8, 4), nn.ReLU())
        self.over_time = nn.GRU(64, 48, batch_first=True)
        self.head = nn.Linear(48, 12)

    def forward(self, wave):
        found, _ = self.over_time(self.body(wave).transpose(1, 2))
        return self.head(found[:, -1])


class Detector(nn.Module):
    """Pictures to boxes and scores, of two sizes of cells."""

    def __init__(self):
        super().__init__()

        def layer(before, after):
            conv = nn.Conv2d(before, after, 3, 2, 1, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(after), nn.SiLU())

        self.stem, self.fine, self.coarse = layer(3, 32), layer(32, 48), layer(48, 64)
        self.up = nn.Conv2d(64, 48, 1)
        self.heads = nn.ModuleList([nn.Conv2d(48, 4 + 3, 3, padding=1), nn.Conv2d(64, 4 + 3, 3, padding=1)])

    def forward(self, image):
        fine = self.fine(self.stem(image))
        coarse = self.coarse(fine)
        fine = fine + nn.functional.interpolate(self.up(coarse), scale_factor=2.0)
        cells = [head(x).flatten(2) for head, x in zip(self.heads, (fine, coarse))]
        found = torch.cat(cells, 2).transpose(1, 2)
        return found[..., :4].exp(), found[..., 4:].sigmoid()


class Reader(nn.Module):
    """Token ids and a mask to one of 5 topics."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(1000, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(64, 5)

    def forward(self, ids, mask):
        found = self.encoder(self.words(ids), src_key_padding_mask=~mask)
        weight = mask.unsqueeze(-1).float()
        return self.head((found * weight).sum(1) / weight.sum(1))


def listener(width=320):
    torch.manual_seed(0)
    return Listener().eval(), torch.randn(1, 1, width)


def detector():
    torch.manual_seed(0)
    return Detector().eval()


def reader():
    torch.manual_seed(0)
    return Reader().eval()


def texts():
    draw = torch.Generator().manual_seed(1)
    for _ in range(4):
        ids = torch.randint(1000, (8, 24), generator=draw)
        yield {"ids": ids, "mask": torch.arange(24) < torch.randint(6, 25, (8, 1), generator=draw)}


@functools.cache
def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(data.target)


@functools.cache
def trained():
    torch.manual_seed(0)
    images, labels = digits()
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
    )
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for part in torch.randperm(1300).repeat(3).split(100):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(images[part]), labels[part]).backward()
        optimiser.step()
    return net.eval()


def classifier():
    return trained(), digits()[0][:1]


def loader():
    images, labels = digits()
    return torch.utils.data.DataLoader(list(zip(images[:128], labels[:128])), batch_size=32)


def accuracy(network):
    images, labels = digits()
    with torch.no_grad():
        return (network(images[1300:]).argmax(1) == labels[1300:]).float().mean()
'''

Shell = Callable[..., str]


@pytest.fixture
def fxd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    """Runs a command where `own.py` lies, and gives what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FXDECOMP_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "own.py").write_text(OWN)

    def run(words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["fxdecomp", *words.split()])
        with pytest.raises(SystemExit) as stopped:
            main()
        told = capsys.readouterr()
        assert not stopped.value.code, told.err
        assert "Traceback" not in told.err
        assert "Warning" not in told.err
        return " ".join(told.out.split())

    return run


def outputs(file: str, **inputs: np.ndarray[Any, Any]) -> dict[str, Any]:
    """What a written file computes, by the names of its outputs."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def shipped(told: str, folder: str) -> str:
    """The file that the last line says to ship; it is there, or it is the original."""
    name = told.rpartition("Verdict: ship ")[2].partition(":")[0]
    assert name in {"small.onnx", "small.int8.onnx", "dense.onnx"}
    made = json.loads((Path(folder) / "report.json").read_text())["files"]
    assert {*made} == {path.name for path in Path(folder).iterdir()}
    page = (Path(folder) / "report.html").read_text()
    assert f"Ship <strong>{name.removesuffix('.onnx').replace('.', '.<wbr>')}</strong>" in page
    return name


def test_an_onnx_file_and_a_folder_of_pictures(fxd: Shell, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> Any:
        values = draw.standard_normal(shape) / np.prod(shape[1:]) ** 0.5
        return numpy_helper.from_array(values.astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["picture", "w1"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2], name="first"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], pads=[1, 1, 1, 1], name="second"),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "w3"], ["class"], transB=1, name="head"),
    ]
    ends = [helper.make_tensor_value_info("picture", TensorProto.FLOAT, ["n", 3, 32, 32])]
    out = [helper.make_tensor_value_info("class", TensorProto.FLOAT, ["n", 10])]
    weights = [weight("w1", 32, 3, 3, 3), weight("w2", 64, 32, 3, 3), weight("w3", 10, 64)]
    graph = helper.make_graph(nodes, "own", ends, out, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), "own.onnx")
    Path("photos").mkdir()
    from PIL import Image

    for index in range(12):
        Image.fromarray(draw.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(f"photos/{index}.png")
    assert "second" in fxd("inspect own.onnx")
    told = fxd(
        "compress own.onnx --method tucker2 --rank 0.5 --images photos --mean 0.5,0.5,0.5 --std 0.3 -o out -q"
    )
    shipped(told, "out")
    assert "second.core" in {node.name for node in onnx.load("out/small.onnx").graph.node}
    picture = draw.standard_normal((3, 3, 32, 32)).astype(np.float32)
    (got,) = outputs("out/small.onnx", picture=picture).values()
    assert got.shape == (3, 10)


def test_a_network_for_sound_with_arrays(fxd: Shell) -> None:
    waves = np.random.default_rng(0).standard_normal((24, 1, 320)).astype(np.float32)
    np.savez("waves.npz", waves)
    assert "over_time" in fxd("inspect own.py:listener")
    told = fxd(
        "compress own.py:listener --method svd --rank 0.4 --rule body.*=channel_svd:0.4 "
        "--calibration waves.npz -o out -q"
    )
    shipped(told, "out")
    assert next(iter(outputs("out/small.onnx", wave=waves[:5]).values())).shape == (5, 12)


def test_a_detector_with_named_outputs_and_int8(fxd: Shell) -> None:
    np.save("pictures.npy", np.random.default_rng(0).standard_normal((16, 3, 64, 64)).astype(np.float32))
    told = fxd(
        "compress own.py:detector --input 1x3x64x64 --method tucker2 --rank 0.5 --exclude heads.* "
        "--calibration pictures.npy --quantize int8 --output-names boxes,scores -o out -q"
    )
    shipped(told, "out")
    for name in ("small", "small.int8"):
        found = outputs(f"out/{name}.onnx", image=np.zeros((2, 3, 64, 64), np.float32))
        assert {key: value.shape for key, value in found.items()} == {
            "boxes": (2, 320, 4),
            "scores": (2, 320, 3),
        }
    assert "What the values of small.int8 span" in Path("out/report.html").read_text()


def test_a_transformer_with_ids_and_a_mask(fxd: Shell) -> None:
    told = fxd(
        "compress own.py:reader --input ids=1x24:0..999 --input mask=1x24:bool --method svd --rank 0.5 "
        "--calibration own.py:texts -o out -q"
    )
    shipped(told, "out")
    assert "encoder.layers.0.linear1" in told
    ids = np.ones((3, 24), np.int64)
    assert next(iter(outputs("out/small.onnx", ids=ids, mask=ids > 0).values())).shape == (3, 5)


def test_a_trained_classifier_with_a_loader_and_a_metric(fxd: Shell) -> None:
    told = fxd(
        "compress own.py:classifier --preset balanced --calibration own.py:loader --metric own.py:accuracy "
        "-o out -q"
    )
    assert shipped(told, "out") in {"small.onnx", "dense.onnx"}  # by time, which is not ours to judge here
    judged = json.loads(Path("out/report.json").read_text())["judged"]
    assert judged["dense"]["metric"] > 0.9
    assert judged["small"]["metric"] > judged["dense"]["metric"] - 0.03
    assert f"metric of small: {judged['small']['metric']:.4f}" in told
    fxd("bench out/dense.onnx out/small.onnx --rounds 2 --html bench.html -q")
    assert "Ship <strong>" in Path("bench.html").read_text()
