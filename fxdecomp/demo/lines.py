"""Lines of English text, rendered with the fonts that come with matplotlib, so that the truth is known.

The words are those of the standard library's `pydoc_data.topics` (the Python manual). Its clauses are
dealt to three disjoint splits, so that none is both calibrated on and judged by.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxdecomp.demo.recogniser import HEIGHT

if TYPE_CHECKING:  # the extra `demo` brings pillow
    from PIL.ImageFont import FreeTypeFont

WIDTH = 640
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
)
_SIZES = (28, 42)
_MARGIN = 10
_CHARACTERS = (20, 40)
_MARKUP = str.maketrans("", "", '"*`')
_PROSE = re.compile(r"[A-Za-z][a-z'-]*(?: [A-Za-z][a-z'-]*)*")


class Split(StrEnum):
    """What the lines are for. No clause is in two splits."""

    CALIBRATION = "calibration"
    SEARCH = "search"
    JUDGE = "judge"


@dataclass(frozen=True, slots=True, eq=False)
class Lines:
    """Rendered lines and what they say.

    Attributes:
        images: `[N, 1, 64, W]` in [-1, 1].
        texts: The N true texts.
    """

    images: Tensor
    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.images) != len(self.texts):
            raise ValueError(f"{len(self.images)} images and {len(self.texts)} texts: wanted as many of each")


def render_lines(count: int, split: Split, *, seed: int = 0, width: int = WIDTH) -> Lines:
    """Draw `count` lines of a split; the same arguments give the same pixels.

    Args:
        count: Number of lines.
        split: Which clauses to draw from.
        seed: Seed of everything drawn: text, font, size, place, contrast, blur and noise.
        width: Width of every image in pixels; a line is cut at a word to fit, and padded on the right.
    """
    rng = random.Random(f"{split} {seed}")
    images, texts = [], []
    for _ in range(count):
        image, text = _render(rng, clauses(split), width)
        images.append(image)
        texts.append(text)
    stacked = np.stack(images) if images else np.empty((0, HEIGHT, width), np.float32)
    return Lines(torch.from_numpy(stacked).unsqueeze(1), tuple(texts))


@cache
def clauses(split: Split) -> tuple[str, ...]:
    """The clauses of a split: words between two marks, at least `_CHARACTERS[0]` characters long.

    The marks are left out because the dense network itself takes a full stop for a colon and a comma for a
    semicolon in small print: that would drown what compression costs.
    """
    from pydoc_data.topics import topics

    found: dict[str, None] = {}
    for topic in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[topic]):
            prose = " ".join(paragraph.translate(_MARKUP).split())
            for clause in re.split(r"[.,:;?!](?:\s|$)", prose):
                if len(clause) >= _CHARACTERS[0] and _PROSE.fullmatch(clause):
                    found[clause] = None
    pool = list(found)
    random.Random(0).shuffle(pool)
    part = list(Split).index(split)
    return tuple(pool[part :: len(Split)])


def _render(rng: random.Random, pool: tuple[str, ...], width: int) -> tuple[NDArray[np.float32], str]:
    """One image `[64, width]` and its text."""
    from PIL import Image, ImageDraw, ImageFilter

    text, font = _text_and_font(rng, pool, width - 2 * _MARGIN)
    paper, ink = rng.randint(200, 255), rng.randint(0, 90)
    left, top, _, bottom = font.getbbox(text)
    image = Image.new("L", (width, HEIGHT), paper)
    y = (HEIGHT - (bottom - top)) // 2 - top + rng.randint(-2, 2)
    ImageDraw.Draw(image).text((rng.randint(4, _MARGIN) - left, y), text, fill=ink, font=font)
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.8)))
    noise = np.random.default_rng(rng.getrandbits(64)).normal(0, rng.uniform(0, 6), (HEIGHT, width))
    grey = np.clip(np.asarray(image, np.float32) + noise, 0, 255)
    return (grey / 127.5 - 1).astype(np.float32), text


def _text_and_font(rng: random.Random, pool: tuple[str, ...], room: int) -> tuple[str, FreeTypeFont]:
    """Consecutive words of a clause, and a font in which they fill the room in pixels.

    They fill it because recognisers see things in long empty ends: a line cut from a page has none.
    """
    while True:
        words = rng.choice(pool).split()
        text = " ".join([*words[rng.randrange(len(words)) :], ""])[: _CHARACTERS[1] + 1].rpartition(" ")[0]
        name = rng.choice(FONTS)
        if len(text) >= _CHARACTERS[0]:
            size = int(_SIZES[1] * room / _font(name, _SIZES[1]).getlength(text))
            if _SIZES[0] <= size <= _SIZES[1]:
                return text, _font(name, size)


@cache
def _font(name: str, size: int) -> FreeTypeFont:
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf", size)
