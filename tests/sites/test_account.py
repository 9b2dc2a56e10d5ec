"""Everything that holds weights is listed once, with its parameters and multiply-accumulates."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxdecomp
from fxdecomp.inspecting.layers import inspect_layers
from fxdecomp.reasons import Reason
from tests.nets import HALF, drawn, image, small_resnet, small_vgg


def numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class Tokens(nn.Module):
    """A transformer of token ids with learned positions, a class token, layer scales and a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(40, 16), nn.LayerNorm(16)
        self.position, self.token = nn.Parameter(torch.randn(1, 6, 16)), nn.Parameter(torch.randn(1, 1, 16))
        self.attention, self.scale = (
            nn.MultiheadAttention(16, 4, batch_first=True),
            nn.Parameter(torch.ones(16)),
        )
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1) + self.position
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x + self.scale * self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x)


class Recurrent(nn.Module):
    """Every kind of recurrent module, with and without their options."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 12, num_layers=2, bidirectional=True, batch_first=True)
        self.projected = nn.LSTM(24, 10, proj_size=4, batch_first=True)
        self.gru, self.rnn = nn.GRU(4, 6, batch_first=True), nn.RNN(6, 5, batch_first=True, bias=False)
        self.cell, self.fc = nn.GRUCell(5, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        for part in (self.lstm, self.projected, self.gru, self.rnn):
            x = part(x)[0]
        return self.fc(self.cell(x[:, -1]))


STEPS = 2 * 5
RECURRENT_MACS = {
    "lstm": STEPS * 2 * (4 * 12 * (8 + 12) + 4 * 12 * (24 + 12)),
    "projected": STEPS * (4 * 10 * (24 + 4) + 10 * 4),
    "gru": STEPS * 3 * 6 * (4 + 6),
    "rnn": STEPS * 5 * (6 + 5),
    "cell": 2 * 3 * 7 * (5 + 7),
}


class Odd(nn.Module):
    """Weights in products that are no layer, a table without a module, a scale, and one that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.randn(3, 8, 6))
        self.left, self.table = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(9, 8))
        self.act, self.idle = nn.PReLU(8), nn.Parameter(torch.randn(7))
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.act(self.fc(x).mT).mT + F.embedding(x.argmax(-1), self.table)
        return torch.einsum("bti,nio->bnto", y, self.experts), self.left @ y


class TwiceNormed(nn.Module):
    """A BatchNorm without weights behind a convolution without bias: folding adds parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16, affine=False)
        self.up = nn.ConvTranspose2d(16, 16, 3, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.bn(self.conv(x)))


X = image(2, 3, 16, 16)
IDS = torch.arange(10).reshape(2, 5)
NETWORKS: list[tuple[str, Callable[[], nn.Module], Tensor]] = [
    ("vgg", small_vgg, X),
    ("resnet", small_resnet, X),
    ("tokens", Tokens, IDS),
    ("recurrent", Recurrent, image(2, 5, 8)),
    ("odd", Odd, image(2, 5, 8)),
    ("norm without weights", TwiceNormed, X),
    ("encoder", lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 2), image(2, 5, 16)),
]
QUIET = pytest.mark.filterwarnings(
    "ignore:LSTM with projections:UserWarning",
    "ignore:(?s)The tensor attributes? .* assigned during export:UserWarning",
    "ignore:enable_nested_tensor is True:UserWarning",
)


@QUIET
@pytest.mark.parametrize(("make", "x"), [n[1:] for n in NETWORKS], ids=[n[0] for n in NETWORKS])
@pytest.mark.parametrize("exported", [False, True])
def test_parameters_of_the_report_are_those_of_the_module(
    make: Callable[[], nn.Module], x: Tensor, exported: bool
) -> None:
    model = drawn(make())
    gm = fxdecomp.trace(torch.export.export(model, (x,)) if exported else model, x)
    told = fxdecomp.report(gm)
    unused = numel(model) - numel(gm)  # torch.fx keeps no parameter that the graph does not use
    assert unused == (7 if isinstance(model, Odd) and not exported else 0)
    assert told.params_before == told.params_after == numel(model) - unused
    assert sum(row.params for row in inspect_layers(gm)) == numel(model) - unused
    assert sum(row.macs for row in inspect_layers(gm)) == told.macs_before
    names = [outcome.site for outcome in told.outcomes]
    assert len(set(names)) == len(names)
    small = fxdecomp.transform(gm, HALF)
    told = fxdecomp.report(small)
    assert told.params_before == numel(model) - unused
    assert told.params_after == numel(small)
    again = fxdecomp.report(fxdecomp.transform(small, HALF))
    assert (again.params_before, again.params_after) == (told.params_before, told.params_after)
    assert again.outcomes == told.outcomes


@QUIET
@pytest.mark.parametrize("exported", [False, True])
def test_macs_of_recurrent_layers(exported: bool) -> None:
    model, x = drawn(Recurrent()), image(2, 5, 8)
    gm = fxdecomp.trace(torch.export.export(model, (x,)) if exported else model, x)
    rows = {o.site: o for o in fxdecomp.report(gm).outcomes if o.site != "fc"}
    called = set() if exported else {"lstm", "projected", "gru"}  # as modules, which may be decomposed
    assert {name for name, row in rows.items() if row.reason is not Reason.RECURRENT} == called
    assert {name: row.macs for name, row in rows.items()} == RECURRENT_MACS
    assert rows["lstm"].params == numel(model.lstm)
    assert rows["lstm"].layer == ("lstm" if exported else "LSTM 8->12, 2 layers, both directions")


def test_macs_of_attention_that_the_graph_does_not_look_into() -> None:
    class Leaf(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
            return isinstance(m, nn.MultiheadAttention) or super().is_leaf_module(m, qualified_name)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.fc = nn.MultiheadAttention(16, 4), nn.Linear(16, 16)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.fc(self.attention(x, y, y)[0])

    model, inputs = drawn(Net()), (image(3, 2, 16), image(7, 2, 16))
    gm = torch.fx.GraphModule(model, Leaf().trace(model))
    torch.fx.passes.shape_prop.ShapeProp(gm).propagate(*inputs)
    told = {o.site: o for o in fxdecomp.report(gm).outcomes}
    packed = told["attention"]
    assert (packed.reason, packed.params) == (Reason.ATTENTION, 3 * 16 * 16 + 3 * 16)
    assert packed.macs == 16 * 16 * (3 + 7 + 7) * 2
    assert told["attention.out_proj"].reason is Reason.INSIDE_LEAF
    assert fxdecomp.report(gm).params_before == numel(model)


@pytest.mark.parametrize("equation", ["...i,ij->...j", "abi,ij->abj", "b i ..., ij -> b j ..."])
def test_macs_of_a_product_by_einsum(equation: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8, 5))
            self.head = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum(equation, self.head(x), self.weight)

    gm = fxdecomp.trace(Net(), image(2, 8, 8))
    assert fxdecomp.report(gm).macs_before == 2 * 8 * 8 * 8 + 2 * 8 * 8 * 5


@pytest.mark.parametrize("exported", [False, True])
def test_a_bias_that_is_used_elsewhere_too_is_stored_beside_the_chain(exported: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = (nn.Linear(16, 16) for _ in range(3))
            self.two.bias = self.three.bias

        def forward(self, x: Tensor) -> Tensor:
            return self.three(self.two(self.one(x) + self.one.bias))

    model, x = drawn(Net()), image(2, 16)
    gm = fxdecomp.trace(torch.export.export(model, (x,)) if exported else model, x)
    policy = fxdecomp.Policy(rules=[fxdecomp.Rule("*", "svd", 2)], exclude=["three"])
    told = fxdecomp.report(small := fxdecomp.transform(gm, policy))
    assert [(row.site, row.params_after) for row in told.applied] == [("one", 96), ("two", 96)]
    assert told.params_before == numel(model) == 3 * 256 + 32
    assert told.params_after == numel(small) == 2 * 96 + 256


@pytest.mark.parametrize("exported", [False, True])
def test_weights_that_are_in_no_layer_have_a_reason(exported: bool) -> None:
    model, x = drawn(Odd()), image(2, 5, 8)
    gm = fxdecomp.trace(torch.export.export(model, (x,)) if exported else model, x)
    told = {o.site: (o.reason, o.params, o.macs) for o in fxdecomp.report(gm).outcomes}
    assert told.pop("fc") == (Reason.NOT_TRANSFORMED, 72, 2 * 5 * 64)
    idle = told.pop("idle", None)
    assert idle == ((Reason.UNUSED, 7, 0) if exported else None)
    assert told == {
        "act": (Reason.ELEMENTWISE, 8, 0),
        "table": (Reason.EMBEDDING, 72, 0),
        "experts": (Reason.OTHER_LAYER, 144, 2 * 5 * 144),
        "left": (Reason.OTHER_LAYER, 20, 2 * 4 * 5 * 8),
    }


def test_a_share_of_the_cost_is_a_share_of_the_whole_network() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.rnn, self.out = nn.Linear(64, 64), nn.RNN(64, 192), nn.Linear(192, 64)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn(self.fc(x))[0])

    model, x = drawn(Net()), image(4, 2, 64)
    gm = fxdecomp.trace(model, x)
    told = fxdecomp.report(gm)
    assert told.macs_before == 8 * (64 * 64 + 192 * 64 + 192 * 256)
    both = [fxdecomp.Rule("*", "auto")]
    small = fxdecomp.transform(
        gm, fxdecomp.Policy(made_up=False, budget=fxdecomp.MACs(0.9), multiple_of=1, rules=both)
    )
    assert 0.85 * told.macs_before < fxdecomp.report(small).macs_after <= 0.9 * told.macs_before
    small = fxdecomp.transform(
        gm, fxdecomp.Policy(made_up=False, budget=fxdecomp.Params(0.9), multiple_of=1, rules=both)
    )
    assert 0.85 * numel(model) < numel(small) <= 0.9 * numel(model)
    with pytest.raises(fxdecomp.PolicyError, match=r"75\.0% is in layers that no budget reduces \(rnn\)$"):
        fxdecomp.transform(gm, fxdecomp.Policy(made_up=False, budget=fxdecomp.MACs(0.5), rules=both))


class Masked(nn.Module):
    """A convolution of which a mask leaves some connections."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 8, 3, 3))
        self.mask = nn.Parameter(
            (torch.rand(16, 8, 1, 1) > 0.5).float().repeat(1, 1, 3, 3), requires_grad=False
        )

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight.mul(self.mask))


def test_a_weight_and_its_mask_are_both_counted() -> None:
    model = Masked().eval()
    gm = fxdecomp.trace(model, torch.randn(1, 8, 9, 9))
    small = fxdecomp.transform(gm, fxdecomp.Policy(method="tucker2", rank=0.25))
    told = fxdecomp.report(small)
    assert (told.params_before, told.params_after) == (numel(model), numel(small))
