"""LSTM and GRU layers as graphs hold them: which of them are found, and why the others are left alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, rnn

import fxdecomp
from fxdecomp import Policy, Reason, Rule
from fxdecomp.inspecting.layers import inspect_layers
from fxdecomp.sites import survey
from tests.nets import drawn, image

FULL = Policy(rules=[Rule("*rnn*", method="svd", rank=12)], require_saving=False)
LOW = Policy(rules=[Rule("*rnn*", method="svd", rank=4)])


class Reader(nn.Module):
    """A recurrent layer between two Linears; takes `[2, 6, 5]`."""

    def __init__(self, layer: nn.Module, outputs: int) -> None:
        super().__init__()
        self.fc, self.rnn, self.head = nn.Linear(5, 12), layer, nn.Linear(outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(torch.tanh(self.fc(x)))[0])


class Given(Reader):
    """States go in, computed from the input, and come out."""

    def forward(self, x: Tensor) -> Tensor:
        first = self.fc(x).mean(0, keepdim=True).expand(1, 6, 12).contiguous()
        y, (h, c) = self.rnn(input=torch.tanh(self.fc(x)), hx=(first, 0.5 * first))
        return self.head(y) + self.head(h + c).sum()


class Twice(Reader):
    """One layer at two places, of different lengths."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.rnn(torch.tanh(self.fc(x)))[0]
        return self.head(self.rnn(y[:1])[0])


class Pack(nn.Module):
    def forward(self, x: Tensor) -> rnn.PackedSequence:
        return rnn.pack_padded_sequence(x, torch.tensor([2, 2, 2, 1, 1, 1]))


class Unpack(nn.Module):
    def forward(self, packed: rnn.PackedSequence) -> Tensor:
        return rnn.pad_packed_sequence(packed)[0]


class Packed(Reader):
    """Sequences of several lengths, packed by modules that the graph does not look into."""

    def __init__(self) -> None:
        super().__init__(nn.LSTM(12, 12), 12)
        self.pack, self.unpack = Pack(), Unpack()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.unpack(self.rnn(self.pack(self.fc(x)))[0]))


class Leaves(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Pack | Unpack) or super().is_leaf_module(m, module_qualified_name)


class Elsewhere(Reader):
    """The weight is used by the graph as well."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.rnn.weight_ih_l0.sum()


class Pair(Reader):
    """Two layers whose weights are one parameter."""

    def __init__(self) -> None:
        super().__init__(nn.LSTM(12, 12), 12)
        self.rnn2 = nn.LSTM(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn2(self.rnn(torch.tanh(self.fc(x)))[0])[0])


class Own(nn.LSTM):
    def forward(self, x: Tensor) -> tuple[Tensor, object]:  # type: ignore[override]
        return super().forward(2 * x)


def share(model: nn.Module, key: str) -> nn.Module:
    setattr(model.rnn2, key, getattr(model.rnn, key))
    return model


TAKEN: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: Reader(nn.LSTM(12, 12), 12),
    "gru": lambda: Reader(nn.GRU(12, 12), 12),
    "both directions": lambda: Reader(nn.LSTM(12, 6, bidirectional=True), 12),
    "gru in both directions, the batch first": lambda: Reader(
        nn.GRU(12, 6, bidirectional=True, batch_first=True), 12
    ),
    "levels": lambda: Reader(nn.LSTM(12, 6, 3, dropout=0.5, bidirectional=True), 12),
    "no bias": lambda: Reader(nn.LSTM(12, 12, bias=False), 12),
    "projected": lambda: Reader(nn.LSTM(12, 12, proj_size=4), 4),
    "states": lambda: Given(nn.LSTM(12, 12), 12),
    "twice": lambda: Twice(nn.LSTM(12, 12), 12),
}
ODD = pytest.mark.filterwarnings(
    "ignore:LSTM with projections:UserWarning",
    "ignore:The PyTorch API of nested tensors",
    "ignore:.*torch.ao.quantization is deprecated",
    "ignore:.*weight_norm.* is deprecated",
    "ignore:torch.quantize_per_tensor",
    "ignore:(?s)The tensor attributes? .* assigned during export:UserWarning",
)


@ODD
@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_narrower_input_of_full_size_changes_nothing(name: str, dtype: torch.dtype) -> None:
    model, x = drawn(TAKEN[name]()).to(dtype), image(2, 6, 5).to(dtype)
    gm = fxdecomp.trace(model, x)
    told = fxdecomp.report(gm)
    assert told.params_before == sum(p.numel() for p in model.parameters())
    assert told.macs_before == sum(row.macs for row in inspect_layers(gm))
    small = fxdecomp.transform(gm, FULL)
    told = fxdecomp.report(small)
    assert {o.site for o in told.applied} == {"rnn"}
    assert all(o.relative_error < (1e-5 if dtype is torch.float32 else 1e-12) for o in told.applied)
    wanted, got = model(x), small(x)
    assert float((wanted - got).detach().abs().max()) < (1e-5 if dtype is torch.float32 else 1e-12)
    assert told.params_after == sum(p.numel() for p in small.parameters())
    assert told.macs_after == sum(row.macs for row in inspect_layers(small))


@ODD
@pytest.mark.parametrize("name", TAKEN)
def test_a_second_transform_changes_nothing_and_a_plan_replays(name: str) -> None:
    model, x = drawn(TAKEN[name]()), image(2, 6, 5)
    gm = fxdecomp.trace(model, x)
    small = fxdecomp.transform(gm, LOW)
    told = fxdecomp.report(small)
    assert told.applied
    again = fxdecomp.transform(small, LOW)
    assert fxdecomp.report(again).outcomes == told.outcomes
    replayed = fxdecomp.transform(gm, Policy.from_plan(told.plan))
    for other in (again, replayed):
        assert other.state_dict().keys() == small.state_dict().keys()
        pairs = zip(other.state_dict().values(), small.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_what_is_frozen_stays_so() -> None:
    model, x = drawn(Pair()), image(2, 6, 5)
    model.rnn.weight_ih_l0.requires_grad_(False)
    small = fxdecomp.transform(fxdecomp.trace(model, x), LOW)
    frozen = {name for name, parameter in small.named_parameters() if not parameter.requires_grad}
    assert frozen == {"rnn.pointwise_in.weight", "rnn.pointwise_out.weight_ih_l0"}


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, args, result: None)
    return layer


def one_way(layer: nn.Module) -> nn.Module:
    layer.weight_ih_l0_reverse = layer.weight_ih_l0
    return layer


def zero(layer: nn.Module) -> nn.Module:
    nn.init.zeros_(layer.weight_ih_l0)
    return layer


def quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(drawn(TAKEN["plain"]()), {nn.LSTM}, torch.qint8)


LEFT: dict[str, tuple[Callable[[], nn.Module], Reason, str]] = {
    "packed": (Packed, Reason.UNKNOWN_SHAPE, "packed"),
    "states of another": (
        lambda: share(drawn(Pair()), "weight_hh_l0"),
        Reason.TIED_WEIGHT,
        "it is used by rnn2",
    ),
    "tied": (lambda: share(drawn(Pair()), "weight_ih_l0"), Reason.TIED_WEIGHT, "it is used by rnn2"),
    "used elsewhere": (lambda: Elsewhere(nn.LSTM(12, 12), 12), Reason.TIED_WEIGHT, "it is used by"),
    "one for both directions": (
        lambda: Reader(one_way(nn.LSTM(12, 6, bidirectional=True)), 12),
        Reason.TIED_WEIGHT,
        "both directions share it",
    ),
    "hooked": (lambda: Reader(hooked(nn.LSTM(12, 12)), 12), Reason.HOOKED, "remove them"),
    "parametrised": (
        lambda: Reader(parametrizations.orthogonal(nn.LSTM(12, 12), "weight_hh_l0"), 12),
        Reason.UNSUPPORTED_TENSOR,
        "remove_parametrizations",
    ),
    "normalised by a hook": (
        lambda: Reader(nn.utils.weight_norm(nn.LSTM(12, 12), "weight_ih_l0"), 12),
        Reason.HOOKED,
        "remove them",
    ),
    "plain rnn": (lambda: Reader(nn.RNN(12, 12), 12), Reason.RECURRENT, ""),
    "a forward of its own": (lambda: Reader(Own(12, 12), 12), Reason.RECURRENT, ""),
    "zero": (lambda: Reader(zero(nn.LSTM(12, 12)), 12), Reason.ZERO_WEIGHT, ""),
    "small input": (lambda: Reader(nn.LSTM(12, 2), 2), Reason.NO_SAVING, "svd at rank 8 takes"),
    "half of the input": (lambda: Reader(nn.GRU(12, 3), 3), Reason.NO_SAVING, ""),
}


@ODD
@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_alone_says_why(name: str) -> None:
    make, reason, detail = LEFT[name]
    model, x = make(), image(2, 6, 5)
    if isinstance(model, Packed):
        model = torch.fx.GraphModule(model, Leaves().trace(model))
    gm = fxdecomp.trace(model.eval(), x)
    small = fxdecomp.transform(gm, Policy(rules=[Rule("rnn", "svd", 8)]))
    rows = {o.site: o for o in fxdecomp.report(small).outcomes}
    assert (rows["rnn"].reason, detail in rows["rnn"].detail) == (reason, True)
    with torch.no_grad():
        assert torch.equal(small(x), gm(x))


@ODD
def test_graphs_that_call_no_module_keep_their_layers() -> None:
    model, x = drawn(TAKEN["plain"]()), image(2, 6, 5)
    gm = fxdecomp.trace(torch.export.export(model, (x,)), x)
    (row,) = (o for o in fxdecomp.report(fxdecomp.transform(gm, LOW)).outcomes if o.site == "rnn")
    assert (row.reason, row.macs) == (Reason.RECURRENT, 2 * 6 * 48 * 24)


@ODD
def test_a_quantised_layer_is_no_site() -> None:
    gm = fxdecomp.trace(quantised(), image(2, 6, 5))
    assert {site.name for site in survey(gm).sites} == {"fc", "head"}
