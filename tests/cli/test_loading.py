"""Models by reference, with their example inputs."""

from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

import fxdecomp
from fxdecomp import Policy
from fxdecomp.cli.loading import load_model
from fxdecomp.compressing import compress_to
from fxdecomp.export import to_onnx
from fxdecomp.graphs.inputs import call_arguments
from tests.export.nets import Residual, traced


class BothKinds(nn.Module):
    """Takes an argument by position and two by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x: Tensor, *, scale: Tensor, shift: Tensor) -> Tensor:
        return self.fc(x) * scale - shift


def test_a_program_keeps_positional_and_keyword_examples(tmp_path: Path) -> None:
    x, scale, shift = torch.randn(2, 16), torch.full((16,), 2.0), torch.full((16,), 3.0)
    program = torch.export.export(BothKinds(), (x,), {"shift": shift, "scale": scale})
    torch.export.save(program, tmp_path / "both.pt2")
    loaded = load_model(str(tmp_path / "both.pt2"))
    args, kwargs = call_arguments(loaded.example_inputs)
    assert torch.equal(args[0], x)
    assert {name: float(value[0]) for name, value in kwargs.items()} == {"scale": 2.0, "shift": 3.0}
    gm = fxdecomp.trace(loaded.model, loaded.example_inputs)
    assert torch.equal(gm(*args, **kwargs), program.module()(x, scale=scale, shift=shift))
    result = compress_to(loaded, Policy("svd", 4), tmp_path / "out")
    assert len(result.report.applied) == 1
    assert sorted(result.exported.inputs) == ["scale", "shift", "x"]
    again = load_model(str(tmp_path / "out" / "small.pt2"))
    assert len(call_arguments(again.example_inputs)[1]) == 2


def test_the_program_takes_any_batch_and_keeps_the_example(tmp_path: Path) -> None:
    loaded = load_model("tests.cli_models:small_net")
    assert compress_to(loaded, Policy("svd", 4), tmp_path).exported.dynamic_batch
    again = load_model(str(tmp_path / "small.pt2"))
    (example,), _ = call_arguments(again.example_inputs)
    assert torch.equal(example, call_arguments(loaded.example_inputs)[0][0])
    run = again.model.module()  # type: ignore[union-attr,operator]
    x = torch.randn(5, 3, 8, 8)
    assert torch.allclose(run(x)[3:4], run(x[3:4]), atol=1e-5)  # type: ignore[operator]


def test_an_onnx_file_goes_through_and_keeps_the_names_of_its_ends(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    to_onnx(
        traced(Residual()), torch.randn(1, 3, 16, 16), path, input_names=["input.1"], output_names=["scores"]
    )
    loaded = load_model(str(path))
    result = compress_to(loaded, Policy("tucker2", 4, exclude=["stem", "second.*"]), tmp_path / "out")
    assert [item.site for item in result.report.applied] == ["first"]
    graph = onnx.load(tmp_path / "out" / "small.onnx").graph
    assert [value.name for value in [*graph.input, *graph.output]] == ["input.1", "scores"]
