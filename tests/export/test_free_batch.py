"""Networks whose first axis the exporter fixes without a word."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fxdecomp.errors import ExportError
from fxdecomp.export import to_onnx

from .nets import traced


class SequenceFirst(nn.Module):
    """PyTorch's default layout: the first axis is time, the exporter writes its length into the file."""

    def __init__(self, kind: type[nn.LSTM | nn.RNN]) -> None:
        super().__init__()
        self.rnn = kind(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.RNN])
def test_a_batch_that_the_exporter_fixes_is_a_note_unless_it_was_asked_for(
    kind: type[nn.LSTM | nn.RNN], tmp_path: Path
) -> None:
    gm = traced(SequenceFirst(kind))
    report = to_onnx(gm, torch.randn(5, 2, 8), tmp_path / "a.onnx")
    assert not report.dynamic_batch
    assert "fixed to the example's: the exported file does not bear another" in report.notes[0]
    assert "ONNX Runtime cannot run a.onnx on inputs" in report.notes[0]
    assert {row.shapes for row in report.parity} == {((5, 2, 8),)}
    with pytest.raises(ExportError, match=r"cannot be dynamic: .*does not bear another.*dynamic_batch=False"):
        to_onnx(gm, torch.randn(5, 2, 8), tmp_path / "b.onnx", dynamic_batch=True)
    assert not (tmp_path / "b.onnx").exists()
