"""What the exporter does without a word, and what must not happen to the inputs."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fxdecomp.errors import ExportError, ParityError
from fxdecomp.export import check_parity, to_onnx

from .nets import traced


class SequenceFirst(nn.Module):
    """PyTorch's default layout: the first axis is time, the exporter writes its length into the file."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(8, 8)  # for which the exporter has no operator
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


def test_a_batch_that_the_exporter_fixes_is_a_note_unless_it_was_asked_for(tmp_path: Path) -> None:
    gm = traced(SequenceFirst())
    report = to_onnx(gm, torch.randn(5, 2, 8), tmp_path / "a.onnx")
    assert not report.dynamic_batch
    assert "fixed to the example's: the exported file does not bear another" in report.notes[0]
    assert "ONNX Runtime cannot run a.onnx on inputs" in report.notes[0]
    assert {row.shapes for row in report.parity} == {((5, 2, 8),)}
    with pytest.raises(ExportError, match=r"cannot be dynamic: .*does not bear another.*dynamic_batch=False"):
        to_onnx(gm, torch.randn(5, 2, 8), tmp_path / "b.onnx", dynamic_batch=True)
    assert not (tmp_path / "b.onnx").exists()


def test_a_free_length_that_the_exporter_fixes_is_an_error_that_says_so(tmp_path: Path) -> None:
    gm = traced(nn.Sequential(nn.RNN(8, 8, batch_first=True)))  # for which the exporter has no loop
    with pytest.raises(ExportError, match="the exporter fixes axis 1 of input 'input' to 5; leave it out of"):
        to_onnx(gm, torch.randn(2, 5, 8), tmp_path / "a.onnx", dynamic_axes=(1,))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("first", [nn.ReLU(inplace=True), None], ids=["module", "methods"])
def test_a_network_that_changes_its_input_is_exported_and_the_input_is_kept(
    first: nn.Module | None, tmp_path: Path
) -> None:
    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = first
            self.head = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.first(x) if self.first else x.sub_(0.5).div_(0.25))

    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    kept = x.clone()
    assert to_onnx(traced(Changing()), x, tmp_path / "a.onnx").dynamic_batch
    assert torch.equal(x, kept)


def test_equal_values_of_another_type_are_a_difference(tmp_path: Path) -> None:
    class Best(nn.Module):
        def __init__(self, kind: torch.dtype) -> None:
            super().__init__()
            self.kind = kind

        def forward(self, x: Tensor) -> Tensor:
            return x.argmax(1).to(self.kind)

    to_onnx(traced(Best(torch.int32)), torch.randn(2, 8), tmp_path / "a.onnx")
    with pytest.raises(ParityError, match="type int32, PyTorch gives int64"):
        check_parity(traced(Best(torch.int64)), tmp_path / "a.onnx", [torch.randn(2, 8)])
