"""The same layers in every dialect: modules, functions with get_attr, and the aten graphs of torch.export."""

import operator
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx import GraphModule
from torch.nn import functional as F

import fxdecomp
from fxdecomp.sites import survey
from tests.nets import FULL, drawn, image, relative_difference, small_resnet, targets

X = image(2, 8, 9, 9).double()


class Functional(nn.Module):
    """A convolution and a Linear called as functions on parameters."""

    def __init__(self, conv: Callable[..., Tensor] = F.conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.weight = nn.Parameter(torch.empty(12, 8, 3, 3))
        self.bias = nn.Parameter(torch.empty(12))
        self.head_weight = nn.Parameter(torch.empty(6, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x, self.weight, self.bias, stride=2, padding=1)
        return F.linear(F.relu(x).mean((2, 3)), self.head_weight)


class Modules(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 12, 3, stride=(2, 1), padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.conv(x))).mean((2, 3)))


def assert_decomposed(gm: GraphModule, model: nn.Module, inputs: Tensor, count: int) -> GraphModule:
    small = fxdecomp.transform(gm, FULL)
    report = fxdecomp.report(small)
    assert len(report.applied) == count, str(report)
    assert not report.skipped, str(report)
    assert relative_difference(model, small, inputs) < 1e-12
    return small


@pytest.mark.parametrize("conv", [F.conv2d, torch.conv2d])
def test_functional_layers_with_parameters(conv: Callable[..., Tensor]) -> None:
    model = drawn(Functional(conv)).double()
    gm = fxdecomp.trace(model, X)
    assert fxdecomp.report(gm).record.traced_with == "symbolic_trace"
    small = assert_decomposed(gm, model, X, 2)
    assert not {"weight", "bias", "head_weight"} & set(small.state_dict())


def test_arguments_by_keyword() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(12, 8, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(input=x, weight=self.weight, padding="same", dilation=(2, 1))

    model = drawn(Net()).double()
    assert_decomposed(fxdecomp.trace(model, X), model, X, 1)


def test_exported_program_and_pt2_file(tmp_path: Path) -> None:
    model = drawn(Modules()).double()
    program = torch.export.export(model, (X,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "model.pt2")
    for source in (program, tmp_path / "model.pt2", str(tmp_path / "model.pt2")):
        gm = fxdecomp.trace(source, X)
        assert fxdecomp.report(gm).record.traced_with == "torch.export"
        small = assert_decomposed(gm, model, X, 2)
        assert relative_difference(model, small, image(5, 8, 9, 9).double()) < 1e-12
        assert sorted(o.site for o in fxdecomp.report(small).outcomes) == ["conv", "head"]
        assert [f.into for f in fxdecomp.report(small).record.folds] == ["conv"]


def test_the_core_aten_operators_of_run_decompositions() -> None:
    model = drawn(Modules()).double()
    program = torch.export.export(model, (X,)).run_decompositions()
    used = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {"aten.convolution.default", "aten.addmm.default"} <= used
    small = assert_decomposed(fxdecomp.trace(program, X), model, X, 2)
    assert [f.into for f in fxdecomp.report(small).record.folds] == ["conv"]


@pytest.mark.parametrize("axes", [(0, 2, 3, 1), (0, 3, 2, 1)])
def test_a_linear_on_moved_axes_is_one_when_it_was_decomposed(axes: tuple[int, ...]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 12, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.permute(axes))

    model = drawn(Net()).double()
    program = torch.export.export(model, (X,)).run_decompositions()
    assert any(node.target is torch.ops.aten.bmm.default for node in program.graph.nodes)
    gm = fxdecomp.trace(program, X)
    small = assert_decomposed(gm, model, X, 1)
    (applied,) = fxdecomp.report(small).applied
    assert (applied.site, applied.layer) == ("fc", "Linear 8->12")


def test_a_batched_product_with_a_matrix_for_each_example_is_no_layer() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrices = nn.Parameter(torch.randn(2, 9, 5))
            self.fc = nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.bmm(x[:, 0], self.matrices))

    model = drawn(Net())
    outcomes = fxdecomp.report(fxdecomp.trace(model, image(2, 8, 4, 9))).outcomes
    assert {o.site: o.layer for o in outcomes}["matrices"] == "bmm"


def test_a_plain_matrix_product_is_a_linear() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.empty(9, 20))

        def forward(self, x: Tensor) -> Tensor:
            return torch.matmul(x, self.matrix)

    model = drawn(Net()).double()
    small = assert_decomposed(fxdecomp.trace(model, X), model, X, 1)
    assert fxdecomp.report(small).applied[0].layer == "Linear 9->20"


def test_a_product_of_two_values_is_no_layer() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(9, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.matmul(self.fc(x), x)

    gm = fxdecomp.trace(drawn(Net()), image(2, 8, 4, 9))
    assert [o.site for o in fxdecomp.report(gm).outcomes] == ["fc"]


def test_a_computed_weight_is_left_alone_with_its_reason() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            return F.conv2d(x, weight)

    gm = fxdecomp.trace(Net(), (image(1, 8, 5, 5), image(4, 8, 3, 3)))
    (only,) = fxdecomp.report(gm).outcomes
    assert only.reason is fxdecomp.Reason.COMPUTED_WEIGHT
    small = fxdecomp.transform(gm, FULL)
    assert fxdecomp.graph_diff(gm, small) == ""


def test_a_standardised_weight_is_materialised() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(12, 8, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            centred = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(x, centred / centred.std((1, 2, 3), keepdim=True), padding=1)

    model = drawn(Net()).double()
    small = assert_decomposed(fxdecomp.trace(model, X), model, X, 1)
    assert "std" not in str(small.graph)


@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention_is_looked_into(batch_first: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4, batch_first=batch_first)
            self.head = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.attention(x, x, x, need_weights=False)[0])

    model = drawn(Net()).double()
    x = image(3, 7, 16).double()
    gm = fxdecomp.trace(model, x)
    assert fxdecomp.report(gm).record.traced_with == "torch.export"
    small = assert_decomposed(gm, model, x, 3)
    assert sorted(o.site for o in fxdecomp.report(small).applied) == [
        "attention.in_proj",
        "attention.out_proj",
        "head",
    ]
    other = image(3, 11, 16).double() if batch_first else image(11, 3, 16).double()
    assert relative_difference(model, small, other) < 1e-12


def test_cross_attention_shares_one_projection_matrix() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x: Tensor, memory: Tensor) -> Tensor:
            return self.attention(x, memory, memory, need_weights=False)[0]

    model = drawn(Net()).double()
    inputs = (image(2, 7, 16).double(), image(2, 5, 16, seed=5).double())
    gm = fxdecomp.trace(model, inputs)
    small = fxdecomp.transform(gm, FULL)
    assert relative_difference(model, small, inputs) < 1e-12
    outcomes = fxdecomp.report(small).outcomes
    assert "attention.out_proj" in [o.site for o in fxdecomp.report(small).applied]
    assert sum(o.site.startswith("attention.in_proj") for o in outcomes) >= 1


def test_an_encoder_layer_of_a_transformer() -> None:
    model = drawn(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0)).double()
    x = image(2, 7, 16).double()
    gm = fxdecomp.trace(model, x)
    small = fxdecomp.transform(gm, FULL)
    assert relative_difference(model, small, x) < 1e-12
    names = sorted(o.site for o in fxdecomp.report(small).applied)
    assert names == ["linear1", "linear2", "self_attn.in_proj", "self_attn.out_proj"]


def test_a_graph_module_is_taken_as_it_is() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_module("mystery", (x,))
    z = graph.call_module("conv", (y,))
    graph.output((z, graph.call_function(operator.neg, (y,))))
    gm = GraphModule(nn.ModuleDict({"mystery": nn.LSTM(9, 9), "conv": nn.Conv1d(8, 4, 3)}), graph)
    gm.mystery.forward = lambda x: x + 1  # a leaf of unknown kind
    traced = fxdecomp.trace(drawn(gm), image(2, 8, 9))
    assert fxdecomp.report(traced).record.traced_with == "given"
    assert targets(traced) == ["mystery", "conv"]
    assert targets(fxdecomp.transform(traced, FULL)) == [
        "mystery",
        "conv.pointwise_in",
        "conv.core",
        "conv.pointwise_out",
    ]


def test_asymmetric_padding_by_the_network_stays() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(F.pad(x, (0, 1, 0, 1)))

    model = drawn(Net()).double()
    small = assert_decomposed(fxdecomp.trace(model, X), model, X, 1)
    assert "pad" in str(small.graph)


def test_the_dialects_agree_on_every_chain() -> None:
    model = small_resnet().double()
    x = image(2, 3, 16, 16).double()
    half = fxdecomp.Policy(rules=[fxdecomp.Rule("*", "tucker2", 0.5)])
    by_modules = fxdecomp.transform(fxdecomp.trace(model, x), half)
    by_export = fxdecomp.transform(fxdecomp.trace(torch.export.export(model, (x,)), x), half)
    one, other = ({o.site: o for o in fxdecomp.report(gm).outcomes} for gm in (by_modules, by_export))
    assert one.keys() == other.keys()
    for name, outcome in one.items():
        assert (outcome.rank, outcome.macs_after, outcome.params_after, outcome.layer) == (
            other[name].rank,
            other[name].macs_after,
            other[name].params_after,
            other[name].layer,
        )
    assert relative_difference(by_modules, by_export, x) < 1e-10


def test_a_survey_lists_every_layer_once() -> None:
    found = survey(fxdecomp.trace(small_resnet(), image(2, 3, 16, 16)))
    names = [site.name for site in found.sites]
    assert len(names) == len(set(names)) == 7
    assert not found.skipped
