"""Modules and tensors that are not plain: shared, tied, parametrised, hooked, quantised, sparse, meta."""

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

import fxdecomp
from fxdecomp import Reason
from tests.nets import FULL, drawn, full_rank_error, image, relative_difference, targets

X = image(2, 8, 6, 6).double()


def single(layer: nn.Module, x: Tensor = X) -> tuple[GraphModule, GraphModule]:
    gm = fxdecomp.trace(nn.Sequential(layer).eval(), x)
    return gm, fxdecomp.transform(gm, FULL)


def only_reason(gm: GraphModule) -> tuple[Reason, str]:
    (skipped,) = fxdecomp.report(gm).outcomes
    assert isinstance(skipped, fxdecomp.Skipped)
    return skipped.reason, skipped.detail


class Shared(nn.Module):
    """One convolution at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.conv(x)))


class Tied(nn.Module):
    """A language model's head that uses the embedding's matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.embedding(tokens)))


def test_a_shared_module_is_factorised_once() -> None:
    model = drawn(Shared()).double()
    small = fxdecomp.transform(fxdecomp.trace(model, X), FULL)
    chain = ["conv.pointwise_in", "conv.core", "conv.pointwise_out"]
    assert targets(small) == [*chain, *chain]
    (applied,) = fxdecomp.report(small).outcomes
    assert applied.calls == 2
    assert relative_difference(model, small, X) < 1e-12


def test_a_module_under_two_names_is_one_layer() -> None:
    conv = nn.Conv2d(8, 8, 3, padding=1)
    model = drawn(nn.Sequential(conv, nn.ReLU(), conv)).double()
    small = fxdecomp.transform(fxdecomp.trace(model, X), FULL)
    (applied,) = fxdecomp.report(small).outcomes
    assert (applied.site, applied.calls) == ("0", 2)
    assert relative_difference(model, small, X) < 1e-12
    assert sum(p.numel() for p in small.parameters()) == applied.params_after


def test_two_modules_with_one_parameter_are_tied() -> None:
    model = drawn(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)))
    model[2].weight = model[0].weight
    gm = fxdecomp.trace(model, image(2, 6))
    report = fxdecomp.report(fxdecomp.transform(gm, FULL))
    assert [s.reason for s in report.skipped] == [Reason.TIED_WEIGHT] * 2


def test_one_functional_weight_at_two_places() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(8, 8, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(F.relu(F.conv2d(x, self.weight, padding=1)), self.weight, padding=1)

    model = drawn(Net()).double()
    small = fxdecomp.transform(fxdecomp.trace(model, X), FULL)
    (applied,) = fxdecomp.report(small).outcomes
    assert applied.calls == 2
    assert relative_difference(model, small, X) < 1e-12


def test_one_weight_in_two_geometries_is_tied() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(8, 8, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight, padding=1) + F.conv2d(x, self.weight, padding=2, dilation=2)

    gm = fxdecomp.trace(drawn(Net()), image(1, 8, 6, 6))
    report = fxdecomp.report(fxdecomp.transform(gm, FULL))
    assert [s.reason for s in report.outcomes] == [Reason.TIED_WEIGHT] * 2


@pytest.mark.parametrize("exported", [False, True])
def test_a_head_tied_to_the_embedding_stays_tied(exported: bool) -> None:
    model = drawn(Tied()).double()
    tokens = torch.arange(6).reshape(2, 3)
    source = torch.export.export(model, (tokens,)) if exported else model
    small = fxdecomp.transform(fxdecomp.trace(source, tokens), FULL)
    by_site = {o.site: o for o in fxdecomp.report(small).outcomes}
    assert isinstance(by_site["body"], fxdecomp.Applied)
    tied = [o for name, o in by_site.items() if name != "body"]
    assert [o.reason for o in tied] == [Reason.TIED_WEIGHT, Reason.EMBEDDING]
    assert tied[0].detail == "it is used by embedding"
    assert [o.params for o in tied] == [20 * 8, 0]  # one tensor
    assert tied[1].detail == "its weights are counted with another layer"
    assert relative_difference(model, small, tokens) < 1e-12
    assert sum(p.numel() for p in small.parameters()) == 20 * 8 + 8 * 8 * 2 + 8


def test_an_in_place_activation_on_what_a_skip_connection_keeps() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            kept = self.conv1(x)
            out = self.conv2(self.relu(kept))  # rewrites `kept`
            return out.add_(kept)

    assert full_rank_error(drawn(Net()), X) < 1e-12
    program = torch.export.export(drawn(Net()).double(), (X,))
    small = fxdecomp.transform(fxdecomp.trace(program, X), FULL)
    assert relative_difference(program.module(), small, X) < 1e-12


@pytest.mark.parametrize(
    "kind", ["weight_norm", "spectral_norm", "orthogonal", "old_weight_norm", "old_spectral"]
)
def test_parametrised_weights_are_materialised(kind: str) -> None:
    layer = drawn(nn.Linear(8, 6)).double()
    wrap = {
        "weight_norm": parametrizations.weight_norm,
        "spectral_norm": parametrizations.spectral_norm,
        "orthogonal": parametrizations.orthogonal,
        "old_spectral": nn.utils.spectral_norm,
    }
    if kind == "old_weight_norm":
        with pytest.warns(FutureWarning):
            layer = nn.utils.weight_norm(layer)
    else:
        layer = wrap[kind](layer)
    layer.eval()
    x = image(3, 8).double()
    model = nn.Sequential(layer).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    gm = fxdecomp.trace(model, x)
    small = fxdecomp.transform(gm, FULL)
    assert [o.site for o in fxdecomp.report(small).applied] == ["0"]
    assert relative_difference(model, small, x) < 1e-12
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    assert "parametrizations" not in str(list(small.state_dict()))


def test_a_custom_parametrisation() -> None:
    class Symmetric(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight.triu() + weight.triu(1).T

    layer = drawn(nn.Linear(8, 8)).double()
    parametrize.register_parametrization(layer, "weight", Symmetric())
    x = image(3, 8).double()
    gm, small = single(layer, x)
    assert len(fxdecomp.report(small).applied) == 1
    assert relative_difference(gm, small, x) < 1e-12


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_a_lazy_module_is_named() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3))
    with pytest.raises(
        fxdecomp.TraceError, match=r"\"0\.weight\" is lazy and has no shape yet; run the model once"
    ):
        fxdecomp.trace(model, X)


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_a_lazy_module_after_its_first_run() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3))
    model(image(2, 8, 6, 6))
    gm = fxdecomp.trace(model, image(2, 8, 6, 6))
    assert len(fxdecomp.report(fxdecomp.transform(gm, FULL)).applied) == 1


def test_forward_hooks_are_not_lost_silently() -> None:
    layer = drawn(nn.Conv2d(8, 6, 3)).double()
    layer.register_forward_hook(lambda module, inputs, output: output + 1)
    gm, small = single(layer)
    assert only_reason(small) == (Reason.HOOKED, "remove them, or fold them into the weight")
    assert fxdecomp.graph_diff(gm, small) == ""
    assert relative_difference(gm, small, X) == 0


def test_a_subclass_with_a_forward_of_its_own_is_not_touched() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Leaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = Scaled(6, 6)
            self.plain = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.plain(self.fc(x))

    assert full_rank_error(drawn(Leaf()), image(2, 6)) < 1e-12


def test_a_weight_on_the_meta_device() -> None:
    graph_source = nn.Sequential(nn.Linear(6, 6))
    gm = fxdecomp.trace(graph_source, image(2, 6))
    gm.get_submodule("0").to("meta")
    small = fxdecomp.transform(gm, FULL)
    assert only_reason(small) == (
        Reason.UNSUPPORTED_TENSOR,
        "it is on the meta device and holds no numbers; load the weights first",
    )


def test_a_sparse_weight() -> None:
    gm = fxdecomp.trace(nn.Sequential(nn.Linear(6, 6)), image(2, 6))
    gm.get_submodule("0").weight = nn.Parameter(torch.eye(6).to_sparse(), requires_grad=False)
    small = fxdecomp.transform(gm, FULL)
    assert only_reason(small) == (Reason.UNSUPPORTED_TENSOR, "it is stored as torch.sparse_coo")
    assert fxdecomp.graph_diff(gm, small) == ""


def test_a_tensor_subclass() -> None:
    class Tagged(Tensor):
        pass

    layer = nn.Linear(6, 6)
    layer.weight = nn.Parameter(torch.eye(6).as_subclass(Tagged), requires_grad=False)
    _, small = single(layer, image(2, 6))
    reason, detail = only_reason(small)
    assert (reason, detail) == (Reason.UNSUPPORTED_TENSOR, "it is a Tagged")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_dynamically_quantised_module_is_left_in_peace() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Conv1d(8, 4, 1)).eval()
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    x = image(2, 8, 8)
    gm = fxdecomp.trace(quantised, x)
    small = fxdecomp.transform(gm, FULL)
    assert relative_difference(gm, small, x) < 1e-5
    assert [a.site for a in fxdecomp.report(small).applied] == ["2"]


@pytest.mark.filterwarnings("ignore:Complex modules:UserWarning")
def test_complex_weights() -> None:
    layer = nn.Linear(6, 6).to(torch.complex64)
    _, small = single(layer, image(2, 6).to(torch.complex64))
    reason, detail = only_reason(small)
    assert (reason, detail) == (Reason.UNSUPPORTED_TENSOR, "it holds torch.complex64")


def test_layers_inside_a_leaf_are_named() -> None:
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
            return qualified_name == "block" or super().is_leaf_module(m, qualified_name)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
            self.head = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.block(x))

    model = Net().eval()
    gm = fxdecomp.trace(GraphModule(model, Tracer().trace(model)), image(2, 6))
    report = fxdecomp.report(fxdecomp.transform(gm, FULL))
    assert [(s.site, s.reason, s.detail) for s in report.skipped] == [
        ("block.0", Reason.INSIDE_LEAF, "block (Sequential)")
    ]
    assert [a.site for a in report.applied] == ["head"]


def test_a_site_that_is_the_graphs_output_and_used_elsewhere() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = self.conv(x)
            return {"features": y, "sum": y + x}

    model = drawn(Net()).double()
    gm = fxdecomp.trace(model, X)
    small = fxdecomp.transform(gm, FULL)
    wanted, got = model(X), small(X)
    assert wanted.keys() == got.keys()
    assert all(torch.allclose(wanted[key], got[key], rtol=0, atol=1e-12) for key in wanted)
    assert targets(small) == ["conv.pointwise_in", "conv.core", "conv.pointwise_out"]


class TwoWays(nn.Module):
    """Control flow that torch.export keeps, a branch for each way."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(16, 16)
        self.one, self.two = nn.Linear(16, 16), nn.Conv1d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        return torch.cond(x.sum() > 0, self.one, lambda x: self.two(x[..., None])[..., 0], (x,))


def test_layers_in_the_branches_of_a_graph_are_listed() -> None:
    model, x = drawn(TwoWays()), image(4, 16)
    gm = fxdecomp.trace(model, x)
    small = fxdecomp.transform(gm, FULL)
    report = fxdecomp.report(small)
    assert [row.site for row in report.applied] == ["before"]
    assert [(row.layer, row.reason) for row in report.skipped] == [
        ("aten.linear.default", fxdecomp.Reason.INSIDE_LEAF),
        ("aten.conv1d.default", fxdecomp.Reason.INSIDE_LEAF),
    ]
    assert all("a branch of the graph" in row.detail for row in report.skipped)
    assert relative_difference(model, small, x) < 1e-5
