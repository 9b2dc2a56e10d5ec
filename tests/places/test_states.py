"""Which recurrent layers may have fewer states, and why others keep theirs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fxdecomp
from fxdecomp import Policy, Reason, Rule
from tests.nets import drawn, image
from tests.places.dialects import dialect
from tests.places.test_coupling import Net

HALF = Policy(rules=[Rule("rnn", width=0.5)])
X = image(3, 5, 6)


def net(forward: Callable[..., Tensor], rnn: nn.Module, inputs: int, **more: nn.Module) -> Net:
    return Net(forward, rnn=rnn, head=nn.Linear(inputs, 4), **more)


def first(m: nn.Module, x: Tensor) -> Tensor:
    """The layer behind reads the outputs of all steps."""
    return m.head(m.rnn(x)[0])


def both_ways(**options: bool) -> nn.Module:
    return nn.LSTM(6, 8, bidirectional=True, **options)


def without_odd_states(model: nn.Module, state_of: Callable[[int], int] = lambda i: i) -> nn.Module:
    """A network half of whose states nothing but themselves depends on.

    Args:
        model: The network.
        state_of: The state that an input of its head is, modulo the states of a direction.
    """
    hidden, weight = model.rnn.hidden_size, model.head.weight
    with torch.no_grad():
        for name, each in model.rnn.named_parameters():
            if name.startswith("weight_hh"):
                each[:, 1::2] = 0
        weight[:, [i for i in range(weight.shape[1]) if state_of(i) % hidden % 2]] = 0
    return model


FOLLOWED: dict[str, Callable[[], Net]] = {
    "one way": lambda: net(first, nn.LSTM(6, 8), 8),
    "gru in both directions": lambda: net(first, nn.GRU(6, 8, bidirectional=True, batch_first=True), 16),
    "dropped and turned": lambda: net(
        lambda m, x: m.head(m.drop(m.rnn(x)[0].transpose(0, 1)).contiguous()),
        both_ways(bias=False),
        16,
        drop=nn.Dropout(),
    ),
    "the last step": lambda: net(lambda m, x: m.head(m.rnn(x)[0][:, -1]), both_ways(batch_first=True), 16),
    "scaled": lambda: net(lambda m, x: m.head(m.rnn(x)[0] * 2), nn.LSTM(6, 8), 8),
    "flat": lambda: net(lambda m, x: m.head(m.rnn(x)[0].reshape(15, 16)), both_ways(), 16),
    "parted by direction": lambda: net(
        lambda m, x: m.head(m.rnn(x)[0].view(3, 5, 2, 8).transpose(2, 3).reshape(3, 5, 16)), both_ways(), 16
    ),
    "a convolution": lambda: Net(
        lambda m, x: m.head(m.rnn(x)[0].transpose(1, 2)),
        rnn=both_ways(batch_first=True),
        head=nn.Conv1d(16, 4, 1),
    ),
}


@pytest.mark.parametrize(
    ("form", "name"),
    [
        *(("symbolic", name) for name in FOLLOWED),
        ("imported", "gru in both directions"),
        ("imported", "flat"),
    ],
)
def test_states_that_nothing_depends_on_go_and_nothing_changes(form: str, name: str, tmp_path: Path) -> None:
    order = {"parted by direction": lambda i: i // 2}.get(name, lambda i: i)
    model = without_odd_states(drawn(FOLLOWED[name]()), order)
    exact = form == "symbolic"
    model, x = (model.double(), X.double()) if exact else (model, X)
    gm, x = dialect(model, x, form, tmp_path)
    before = fxdecomp.report(gm)
    small = fxdecomp.transform(gm, HALF)
    told = fxdecomp.report(small)
    rows = {o.site: (o.method, o.rank) for o in told.applied}
    inputs = 4 * (2 if model.rnn.bidirectional else 1)
    assert sorted(rows.values()) == sorted([("width", (4,)), ("width", (inputs,))])
    with torch.no_grad():
        assert float((small(x) - gm(x)).abs().max()) < (1e-12 if exact else 1e-5)
    assert told.params_after == sum(p.numel() for p in small.parameters())
    assert told.macs_before == before.macs_before
    assert told.macs_after == sum(site.macs for site in fxdecomp.sites.survey(small).sites)


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_of_any_size_and_with_inputs_too(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([nn.LSTM, nn.GRU]))
    hidden, inputs, steps = (data.draw(st.integers(*span)) for span in ((2, 12), (1, 7), (1, 6)))
    ways = data.draw(st.integers(1, 2))
    flags = {name: data.draw(st.booleans()) for name in ("batch_first", "bias")}
    layer = kind(inputs, hidden, bidirectional=ways == 2, **flags)
    dtype, most = data.draw(st.sampled_from([(torch.float64, 1e-12), (torch.float32, 1e-5)]))
    model = without_odd_states(drawn(net(first, layer, ways * hidden))).to(dtype)
    batches = [image(4, steps, inputs, seed=seed).to(dtype) for seed in range(4)]
    given_ = data.draw(st.sampled_from([None, batches]))
    gm = fxdecomp.trace(model, batches[0])
    least = (hidden + 1) // 2
    keep = data.draw(st.integers(least, hidden))
    small = fxdecomp.transform(gm, Policy(rules=[Rule("rnn", width=keep)]), calibration=given_)
    assert small.rnn.hidden_size == keep
    with torch.no_grad():
        assert float((small(batches[1]) - gm(batches[1])).abs().max()) < most


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, args, result: None)
    return layer


def outputs_and_states(m: nn.Module, x: Tensor) -> Tensor:
    y, (h, _) = m.rnn(x)
    return m.head(y) + h.sum()


def given_states(m: nn.Module, x: Tensor) -> Tensor:
    start = x.new_zeros(1, x.shape[1], 8)
    return m.head(m.rnn(x, (start, start))[0])


LEFT: dict[str, tuple[Callable[[], Net], str]] = {
    "levels": (lambda: net(first, nn.LSTM(6, 8, 2), 8), "2 layers on top of each other"),
    "states that are read": (
        lambda: net(outputs_and_states, nn.LSTM(6, 8), 8),
        "last states of rnn are read",
    ),
    "states that are given": (lambda: net(given_states, nn.LSTM(6, 8), 8), "is given states to begin with"),
    "an output": (
        lambda: Net(lambda m, x: m.rnn(m.head(x))[0], rnn=nn.LSTM(6, 8), head=nn.Linear(6, 6)),
        "is an output of the network",
    ),
    "a residual": (
        lambda: net(lambda m, x: m.head(m.rnn(x)[0] + x.repeat(1, 1, 2)[..., :8]), nn.LSTM(6, 8), 8),
        "through which they are not followed",
    ),
    "normalised": (
        lambda: net(lambda m, x: m.head(m.norm(m.rnn(x)[0])), nn.LSTM(6, 8), 8, norm=nn.LayerNorm(8)),
        "norm (layernorm) reads them",
    ),
    "weighed": (
        lambda: net(lambda m, x: m.head(m.rnn(x)[0] * m.c(x)), nn.LSTM(6, 8), 8, c=nn.Linear(6, 8)),
        "they are multiplied before a layer reads them",
    ),
    "two readers": (
        lambda: net(lambda m, x: m.head(y := m.rnn(x)[0]) + m.c(y), nn.LSTM(6, 8), 8, c=nn.Linear(8, 4)),
        "head and c both read them",
    ),
    "another recurrent layer": (
        lambda: net(lambda m, x: m.head(m.c(m.rnn(x)[0])[0]), nn.LSTM(6, 8), 5, c=nn.GRU(8, 5)),
        "does more than mix channels",
    ),
    "one direction alone": (
        lambda: net(lambda m, x: m.head(m.rnn(x)[0][..., :8]), both_ways(), 8),
        "does not read all of them, each once",
    ),
    "directions added": (
        lambda: net(lambda m, x: m.head(m.rnn(x)[0].view(3, 5, 2, 8).sum(2)), both_ways(), 8),
        "(sum) reads them, through which they are not followed",
    ),
    "at two places": (
        lambda: net(lambda m, x: m.head(m.rnn(m.rnn(x)[0])[0]), nn.LSTM(6, 6), 6),
        "rnn is applied at 2 places",
    ),
    "a reader at two places": (
        lambda: net(lambda m, x: m.head(m.rnn(x)[0]) + m.head(x.repeat(1, 1, 2)[..., :8]), nn.LSTM(6, 8), 8),
        "head, which reads them, is applied at 2 places",
    ),
    "hooked": (lambda: net(first, hooked(nn.LSTM(6, 8)), 8), "hooks"),
    "projected": (lambda: net(first, nn.LSTM(6, 8, proj_size=3), 3), "rnn projects them"),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", LEFT)
def test_what_cannot_be_followed_stays_and_says_why(name: str) -> None:
    make, told = LEFT[name]
    gm = fxdecomp.trace(drawn(make()), X)
    small = fxdecomp.transform(gm, HALF)
    assert small.rnn.hidden_size == gm.rnn.hidden_size
    row = next(o for o in fxdecomp.report(small).skipped if o.site == "rnn")
    assert told in row.sentence
    assert row.reason in (Reason.WIDTH, Reason.HOOKED)
    with torch.no_grad():
        assert torch.equal(small(X), gm(X))
