import pytest
import torch

from fxdecomp.demo.lines import FONTS, Lines, Split, _font, clauses, render_lines
from fxdecomp.demo.recogniser import SYMBOLS


def test_the_same_seed_gives_the_same_pixels_and_another_does_not():
    first, again = render_lines(4, Split.JUDGE, seed=3), render_lines(4, Split.JUDGE, seed=3)
    other = render_lines(4, Split.JUDGE, seed=4)
    assert first.texts == again.texts
    assert first.texts != other.texts
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)


def test_lines_are_what_the_network_takes():
    lines = render_lines(12, Split.SEARCH)
    assert lines.images.shape == (12, 1, 64, 640)
    assert lines.images.dtype == torch.float32
    assert lines.images.min() >= -1
    assert lines.images.max() <= 1
    # Dark ink on light paper, and paper only to the right of the text.
    assert (lines.images.amin(dim=(1, 2, 3)) < 0).all()
    assert (lines.images[..., -4:].amin(dim=(1, 2, 3)) > 0).all()
    assert all(20 <= len(text) <= 40 for text in lines.texts)
    assert set("".join(lines.texts)) <= set(SYMBOLS)


def test_no_clause_is_in_two_splits():
    calibration, search, judge = (set(clauses(split)) for split in Split)
    assert min(len(calibration), len(search), len(judge)) > 300
    assert len(calibration | search | judge) == len(calibration) + len(search) + len(judge)


def test_no_lines():
    assert render_lines(0, Split.JUDGE).images.shape == (0, 1, 64, 640)


def test_every_font_is_there_and_is_another():
    assert len({_font(name, 30).getname() for name in FONTS}) == len(FONTS)


def test_as_many_texts_as_images():
    with pytest.raises(ValueError, match="2 images and 1 texts"):
        Lines(torch.zeros(2, 1, 64, 8), ("one",))
