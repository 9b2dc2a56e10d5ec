"""`trace`: which tracer, what it says when none works, and that sizes stay free."""

import logging
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxdecomp
from tests.nets import FULL, drawn, image, relative_difference, small_resnet


class Branching(nn.Module):
    """Control flow on a size: symbolic_trace cannot, torch.export can."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] > 4:
            x = self.conv(x)
        return x.relu()


class OnData(nn.Module):
    """Control flow on a value: nobody can trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() > 0 else x


def tracer(gm: torch.fx.GraphModule) -> str:
    return fxdecomp.report(gm).record.traced_with


def test_symbolic_trace_comes_first() -> None:
    assert tracer(fxdecomp.trace(small_resnet(), image(1, 3, 16, 16))) == "symbolic_trace"


def test_torch_export_where_symbolic_trace_fails() -> None:
    model = drawn(Branching())
    gm = fxdecomp.trace(model, image(1, 3, 9, 9))
    assert tracer(gm) == "torch.export"
    small = fxdecomp.transform(gm, FULL)
    assert relative_difference(model, small, image(4, 3, 13, 8)) < 1e-5
    assert fxdecomp.report(gm).record.notes == ()


@pytest.mark.parametrize(
    ("allowed", "note"),
    [
        (1, "torch.export could leave only the first size of each input free; the others are fixed"),
        (0, "torch.export could leave no size free; the graph takes inputs of the example's sizes only"),
    ],
)
def test_sizes_that_had_to_be_fixed_are_noted(
    monkeypatch: pytest.MonkeyPatch, allowed: int, note: str
) -> None:
    real = torch.export.export

    def limited(
        model: nn.Module, args: tuple[Tensor, ...], kwargs: object, *, dynamic_shapes: dict | None
    ) -> object:
        if any(len(sizes or ()) > allowed for sizes in (dynamic_shapes or {}).values()):
            raise NotImplementedError("The inequality, Eq(x/16 - 2*(((x/16)//2)), 0), cannot be solved")
        return real(model, args, kwargs, dynamic_shapes=dynamic_shapes)

    monkeypatch.setattr(torch.export, "export", limited)
    model = drawn(Branching())
    gm = fxdecomp.trace(model, image(1, 3, 8, 9))
    assert tracer(gm) == "torch.export"
    assert relative_difference(model, gm, image(1, 3, 8, 9)) < 1e-6
    small = fxdecomp.transform(gm, FULL)
    assert fxdecomp.report(small).record.notes == (note,)
    assert str(fxdecomp.report(small)).endswith(note)
    if allowed:
        assert relative_difference(model, small, image(5, 3, 8, 9)) < 1e-5


def test_control_flow_on_data_is_one_clear_error() -> None:
    with pytest.raises(fxdecomp.TraceError) as caught:
        fxdecomp.trace(OnData(), image(1, 3, 5, 5))
    text = str(caught.value)
    assert text.startswith(
        "OnData cannot be traced. symbolic_trace: TraceError: symbolically traced variables"
    )
    assert "torch.export: " in text
    assert text.endswith(
        "Take the data-dependent part out of the network, or pass a GraphModule of the part that is to be "
        "decomposed"
    )
    assert "\n" not in text


def test_every_node_knows_its_shape() -> None:
    gm = fxdecomp.trace(small_resnet(), image(2, 3, 16, 16))
    shapes = {
        node.name: node.meta["tensor_meta"].shape for node in gm.graph.nodes if node.op == "call_module"
    }
    assert shapes["layer2_conv1"] == (2, 32, 8, 8)
    assert shapes["fc"] == (2, 10)


def test_a_traced_graph_is_in_eval_mode_and_shares_its_tensors() -> None:
    model = small_resnet().train()
    gm = fxdecomp.trace(model, image(2, 3, 16, 16))
    assert not any(module.training for module in gm.modules())
    assert {id(p) for p in gm.parameters()} == {id(p) for p in model.parameters()}
    assert model.training


def test_inputs_by_position_by_name_and_with_defaults() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor, y: Tensor, scale: float = 2.0) -> Tensor:
            return self.fc(x) * scale + y

    model, x, y = drawn(Two()), image(2, 4), image(2, 4, seed=2)
    wanted = model(x, y)
    for inputs in ((x, y), {"x": x, "y": y}, {"y": y, "x": x}, [x, y]):
        gm = fxdecomp.trace(model, inputs)
        small = fxdecomp.transform(gm, FULL)
        assert torch.allclose(small(x, y), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ((), "the example inputs lack x; the network takes (x)"),
        ((image(1, 3, 9, 9), image(1)), "the example inputs are 2 values; the network takes (x)"),
        ({"image": image(1, 3, 9, 9)}, "the example inputs name image; the network takes (x)"),
        (image(1, 4, 9, 9), "the network does not run on the example inputs: RuntimeError: Given groups=1"),
        (image(9), "the network does not run on the example inputs: RuntimeError: Expected 3D"),
        (image(1, 3, 0, 0), "the network does not run on the example inputs: RuntimeError"),
    ],
)
def test_inputs_that_do_not_fit(inputs: object, text: str) -> None:
    with pytest.raises(fxdecomp.TraceError) as caught:
        fxdecomp.trace(small_resnet(), inputs)
    assert str(caught.value).startswith(text) or text in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_inputs_are_named() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    with pytest.raises(fxdecomp.TraceError, match=r"lack y; the network takes \(x, y\)"):
        fxdecomp.trace(Two(), {"x": image(1)})


def test_a_file_that_is_no_program(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(b"nothing")
    with pytest.raises(fxdecomp.TraceError, match=r"model\.pt2 is not a readable \.pt2 file"):
        fxdecomp.trace(path, image(1))
    with pytest.raises(fxdecomp.TraceError, match=r"missing\.pt2 is not a readable \.pt2 file"):
        fxdecomp.trace(tmp_path / "missing.pt2", image(1))


def test_a_file_that_is_no_program_fills_no_log(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"nothing")
    heard: list[logging.LogRecord] = []
    log, handler = logging.getLogger("torch.export"), logging.Handler()
    handler.emit = heard.append
    log.addHandler(handler)
    with pytest.raises(fxdecomp.TraceError):
        fxdecomp.trace(tmp_path / "model.pt2", image(1))
    log.removeHandler(handler)
    assert heard == []
    assert not log.disabled


def test_a_graph_without_shapes_says_what_to_do() -> None:
    gm = torch.fx.symbolic_trace(small_resnet())
    with pytest.raises(
        fxdecomp.FxdecompError,
        match=r"the graph has no recorded shapes; use fxdecomp\.trace\(gm, example_inputs\) first",
    ):
        fxdecomp.transform(gm, FULL)


def test_a_deprecation_inside_torch_does_not_reach_the_user() -> None:
    program = torch.export.export(nn.Sequential(nn.Linear(8, 4)).eval(), (torch.randn(2, 8),))
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        gm = fxdecomp.trace(program, torch.randn(2, 8))
        fxdecomp.transform(gm, fxdecomp.Policy(method="svd", rank=2))
    assert [str(each.message) for each in heard if "treespec" in str(each.message)] == []


def test_what_torch_export_makes_is_in_eval_mode_like_any_graph() -> None:
    net = nn.Sequential(nn.Linear(8, 4), nn.Sequential(nn.Linear(4, 4))).eval()
    gm = fxdecomp.trace(torch.export.export(net, (image(2, 8),)), image(2, 8))
    small = fxdecomp.transform(gm, fxdecomp.Policy(method="svd", rank=1, require_saving=False))
    assert [name for each in (gm, small) for name, part in each.named_modules() if part.training] == []
