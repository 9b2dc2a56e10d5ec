"""How well a recogniser reads: greedy CTC decoding, exact lines and the character error rate.

Greedy decoding (Graves et al. 2006): the best class of every column, repeats merged, blanks dropped. The
character error rate is the Levenshtein distance over all lines divided by the true number of characters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from fxdecomp.demo.lines import Lines
from fxdecomp.demo.recogniser import SYMBOLS
from fxdecomp.export.sessions import open_session
from fxdecomp.progress import Progress, silent

Read = Callable[[Tensor], Tensor]
"""Lines `[N, 1, 64, W]` to scores `[N, T, 97]`: a module, or an ONNX file through `onnx_reader`."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The score of one model on a set of lines.

    Attributes:
        exact: Share of the lines read without any error.
        cer: Character error rate: edits needed, over the number of true characters.
        count: Number of lines.
    """

    exact: float
    cer: float
    count: int

    def to_dict(self) -> dict[str, float]:
        """The score as JSON data."""
        return asdict(self)


def judge(
    read: Read,
    lines: Lines,
    *,
    batch_size: int = 16,
    progress: Progress = silent,
    work: str = "reading lines",
) -> Reading:
    """Let a model read the lines and compare with the truth.

    Args:
        read: The model; called without gradients, in batches, the last of them smaller.
        lines: The lines, with their truth.
        batch_size: Lines a call.
        progress: Told of every finished batch, in lines.
        work: What the progress calls it.

    Raises:
        ValueError: There are no lines.
    """
    if not lines.texts:
        raise ValueError("cannot judge a model on no lines, got 0, wanted at least 1")
    got: list[str] = []
    with torch.inference_mode():
        for batch in torch.split(lines.images, batch_size):
            got += decode(read(batch))
            progress(work, len(got), len(lines.texts))
    edits = sum(levenshtein(a, b) for a, b in zip(got, lines.texts, strict=True))
    exact = sum(a == b for a, b in zip(got, lines.texts, strict=True))
    return Reading(exact / len(got), edits / sum(map(len, lines.texts)), len(got))


def decode(scores: Tensor) -> list[str]:
    """The text of each line, by greedy CTC decoding of scores `[N, T, 97]`.

    Spaces at the ends of a line are dropped: nobody can see them, so that they are neither right nor wrong.
    """
    best: list[list[int]] = scores.argmax(dim=2).tolist()
    return ["".join(SYMBOLS[label - 1] for label, _ in groupby(row) if label).strip() for row in best]


def levenshtein(a: str, b: str) -> int:
    """Fewest insertions, deletions and substitutions that turn `a` into `b`. Cost: `len(a) * len(b)`."""
    if a == b:
        return 0
    above = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        row = [i]
        for j, right in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (left != right)))
        above = row
    return above[-1]


def onnx_reader(path: Path, *, threads: int = 0) -> Read:
    """An ONNX recogniser as a callable, on ONNX Runtime's CPU provider.

    Args:
        path: The file; its first input is the lines, its first output the scores.
        threads: Threads within an operator, 0 for every core.
    """
    session = open_session(path, threads=threads)
    name = session.get_inputs()[0].name

    def read(lines: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: lines.numpy()})[0])

    return read
