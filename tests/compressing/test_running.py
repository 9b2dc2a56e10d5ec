"""What a run says of its networks, and what it refuses before the work."""

from pathlib import Path

import pytest
import torch
from torch import nn

import fxdecomp
from fxdecomp.calibration import Calibration
from fxdecomp.compressing import FileOptions, Goal, LoadedModel, compress_to
from fxdecomp.compressing.programs import program_of, save
from fxdecomp.compressing.variants import is_allowed
from fxdecomp.searching.judgements import Judgement


@pytest.mark.parametrize(
    ("metric", "goal", "allowed"),
    [
        (0.86, Goal(0.05), True),
        (0.84, Goal(0.05), False),
        (None, Goal(0.05), None),
        (0.5, None, None),
    ],
)
def test_a_file_that_loses_more_than_a_search_allows_is_not_to_be_shipped(
    metric: float | None, goal: Goal | None, allowed: bool | None
) -> None:
    dense = Judgement("dense", metric=0.9)
    assert is_allowed(Judgement("small.int8", metric=metric), dense, goal) is allowed
    assert is_allowed(None, dense, goal) is None


@pytest.mark.parametrize("asked", [{"recovery_steps": 1}, {"files": FileOptions(quantize="int8")}])
@pytest.mark.parametrize("count", [1, 3])
def test_too_few_inputs_to_train_or_quantise_by_are_refused_before_the_work(
    count: int, asked: dict[str, object], tmp_path: Path
) -> None:
    x = torch.randn(count, 16)
    with pytest.raises(fxdecomp.CalibrationError, match=rf"^{count} calibration .* give 4 or more"):
        compress_to(
            LoadedModel(nn.Sequential(nn.Linear(16, 16)), x),
            fxdecomp.Policy("svd", 2),
            tmp_path / "out",
            calibration=Calibration([x]),
            **asked,  # type: ignore[arg-type]
        )
    assert not (tmp_path / "out").exists()


def test_a_window_that_is_a_part_of_a_larger_tensor_is_saved_without_a_word_of_torchs(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    class Sound(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("window", torch.hann_window(16))
            self.fc = nn.Linear(16, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x * self.window)

    x = torch.randn(2, 16)
    gm = fxdecomp.trace(Sound().eval(), x)
    save(program_of(gm, (x,), {}, free_batch=True), tmp_path / "a.pt2")
    assert not recwarn.list
    assert torch.equal(torch.export.load(tmp_path / "a.pt2").module()(x), gm(x))
