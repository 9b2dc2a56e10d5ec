"""Which layers of a graph share their input, and why others do not."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxdecomp
from fxdecomp import Policy, Reason, Rule
from tests.nets import drawn, image
from tests.places.test_coupling import MAPS, TOKENS, Net

SHARED = Policy(rules=[Rule("[ab]", share="input", rank=3)], require_saving=False)


def pair(forward: Callable[..., Tensor], **more: nn.Module) -> Net:
    return Net(forward, **{"a": nn.Linear(6, 8), "b": nn.Linear(6, 10)} | more)


def convs(forward: Callable[..., Tensor], **more: nn.Module) -> Net:
    layers = {"a": nn.Conv2d(4, 8, 3, padding=1), "b": nn.Conv2d(4, 12, 3, padding=1)}
    return Net(forward, **layers | more)


def both(m: Net, x: Tensor) -> Tensor:
    return torch.cat([m.a(x), m.b(x)], -1)


def stacked(m: Net, x: Tensor) -> Tensor:
    return torch.cat([m.a(x), m.b(x)], 1)


def behind_pads(m: Net, x: Tensor) -> Tensor:
    pads = (1, 1, 1, 1)
    return m.a(F.pad(x, pads, mode="reflect")).sum() + m.b(F.pad(x, pads, mode="reflect"))


def activated(m: Net, x: Tensor) -> Tensor:
    y = F.relu_(x + 1)
    return torch.cat([m.act(m.n(m.a(y))), m.act(m.b(y))], 1)


def written(m: Net, x: Tensor) -> Tensor:
    y = x * 2
    return m.a(y).sum() + m.b(y.add_(1))


def written_unseen(m: Net, x: Tensor) -> Tensor:
    y = x * 2
    z = m.a(y).sum()
    y[0].add_(1)
    return z + m.b(y)


def hooked() -> nn.Module:
    layer = nn.Linear(6, 10)
    layer.register_forward_hook(lambda *_: None)
    return layer


def frozen() -> nn.Module:
    return nn.Linear(6, 10).requires_grad_(requires_grad=False)


FOUND: dict[str, tuple[Callable[[], Net], Tensor]] = {
    "linears": (lambda: pair(both), TOKENS),
    "without biases": (lambda: pair(both, a=nn.Linear(6, 8, bias=False)), TOKENS),
    "a residual in between": (
        lambda: pair(lambda m, x: F.pad(m.b(x) + 1, (0, -2)) + m.a(x) + x.sum()),
        TOKENS,
    ),
    "views of one value": (
        lambda: pair(lambda m, x: m.a(x.flatten(0, 1)).sum() + m.b(x.flatten(0, 1))),
        TOKENS,
    ),
    "convolutions": (lambda: convs(stacked), MAPS),
    "with norms and in-place activations": (
        lambda: convs(
            activated,
            n=nn.BatchNorm2d(8),
            act=nn.ReLU(inplace=True),
        ),
        MAPS,
    ),
    "strided, dilated, reflected": (
        lambda: convs(
            stacked,
            a=nn.Conv2d(4, 8, 3, 2, 2, 2, padding_mode="reflect"),
            b=nn.Conv2d(4, 5, 3, 2, 2, 2, padding_mode="reflect"),
        ),
        MAPS,
    ),
    "behind pads of one value": (lambda: convs(behind_pads), MAPS),
    "transposed": (
        lambda: convs(stacked, a=nn.ConvTranspose2d(4, 8, 3, 2), b=nn.ConvTranspose2d(4, 5, 3, 2)),
        MAPS,
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_reads_the_same_shares_its_first_stages(name: str) -> None:
    build, x = FOUND[name]
    gm = fxdecomp.trace(drawn(build()), x)
    told = fxdecomp.report(fxdecomp.transform(gm, SHARED))
    assert {o.site: o.shares for o in told.applied} == {"a": ("b",), "b": ("a",)}
    assert told.record.notes == ()


REFUSED: dict[str, tuple[Callable[[], Net], Tensor, str]] = {
    "another value": (
        lambda: pair(lambda m, x: m.a(x).sum() + m.b(x + 1)),
        TOKENS,
        "no other layer reads the inputs of a, b",
    ),
    "other views": (
        lambda: pair(lambda m, x: m.a(x.flatten(0, 1)).sum() + m.b(x.transpose(0, 1))),
        TOKENS,
        "no other layer reads the inputs of a, b",
    ),
    "strides": (
        lambda: convs(lambda m, x: m.a(x).sum() + m.b(x), b=nn.Conv2d(4, 8, 3, 2, 1)),
        MAPS,
        "looks at it in another way",
    ),
    "paddings": (
        lambda: convs(lambda m, x: m.a(x).sum() + m.b(x), b=nn.Conv2d(4, 8, 3)),
        MAPS,
        "looks at it in another way",
    ),
    "kernels": (
        lambda: convs(stacked, b=nn.Conv2d(4, 8, 1)),
        MAPS,
        "b (Conv2d 4->8, 1x1), which reads the same",
    ),
    "padding modes": (
        lambda: convs(stacked, b=nn.Conv2d(4, 8, 3, padding=1, padding_mode="circular")),
        MAPS,
        "looks at it in another way",
    ),
    "groups": (
        lambda: convs(stacked, b=nn.Conv2d(4, 8, 3, padding=1, groups=2)),
        MAPS,
        "b shares no input: it has 2 groups",
    ),
    "depthwise": (
        lambda: convs(stacked, b=nn.Conv2d(4, 4, 3, padding=1, groups=4)),
        MAPS,
        "b shares no input: a depthwise layer",
    ),
    "called twice": (
        lambda: pair(lambda m, x: m.a(x).sum() + m.b(x) + m.b(x * 2)),
        TOKENS,
        "b shares no input: it is applied at 2 places",
    ),
    "its bias used elsewhere": (
        lambda: pair(lambda m, x: m.a(x).sum() + m.b(x) + m.b.bias),
        TOKENS,
        "b shares no input: something else uses its bias",
    ),
    "written to in between": (
        lambda: pair(written),
        TOKENS,
        "no other layer reads the inputs of a, b",
    ),
    "written to in between, unseen": (
        lambda: pair(written_unseen),
        TOKENS,
        "add_ may change their input between a and b",
    ),
    "trained and frozen": (lambda: pair(both, b=frozen()), TOKENS, "looks at it in another way"),
    "recurrent": (
        lambda: pair(lambda m, x: m.a(x).sum() + m.b(x)[0], b=nn.LSTM(6, 10, batch_first=True)),
        TOKENS,
        "b shares no input: it is a recurrent layer",
    ),
    "all zero": (
        lambda: pair(both, b=nn.utils.skip_init(nn.Linear, 6, 10)),
        TOKENS,
        "b shares no input: the weight is all zero",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_share_says_why_and_is_decomposed_alone(name: str) -> None:
    build, x, reason = REFUSED[name]
    model = drawn(build())
    if name == "all zero":
        nn.init.zeros_(model.b.weight)
    told = fxdecomp.report(fxdecomp.transform(fxdecomp.trace(model, x), SHARED))
    assert any(reason in note for note in told.record.notes), told.record.notes
    assert [o.shares for o in told.applied if o.site == "a"] == [()]


def tied(m: Net, x: Tensor) -> Tensor:
    return m.a(x).sum() + m.b(x) * m.b.weight.sum()


SKIPPED: dict[str, tuple[Callable[[], Net], Reason | None]] = {
    "hooked": (lambda: pair(both, b=hooked()), Reason.HOOKED),
    "tied": (lambda: pair(tied), Reason.TIED_WEIGHT),
    "quantised": (lambda: pair(both, b=nn.Linear(6, 10)), None),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", SKIPPED)
def test_what_is_no_layer_shares_nothing_for_its_own_reason(name: str) -> None:
    build, reason = SKIPPED[name]
    model: nn.Module = drawn(build())
    if reason is None:
        model = torch.ao.quantization.quantize_dynamic(model, {"b"}, dtype=torch.qint8)
    policy = Policy(rules=[Rule("*", share="input")], method="svd", rank=3, require_saving=False)
    told = fxdecomp.report(fxdecomp.transform(fxdecomp.trace(model, TOKENS), policy))
    assert [(o.site, o.shares) for o in told.applied] == [("a", ())]
    assert [s.reason for s in told.skipped if s.site == "b" and s.macs] == [reason] * (reason is not None)
    assert told.record.notes == ("no other layer reads the inputs of a: these share them with none",)


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (Policy(rules=SHARED.rules, exclude=["b"]), "b, which reads the same, is not to share it"),
        (
            Policy(rules=[Rule("a", share="input", rank=3), Rule("b", share="input", rank=4)]),
            "of b, which reads the same, another method or rank is wanted",
        ),
        (
            Policy(rules=[Rule("[ab]", share="input"), Rule("a", method="svd", rank=3), Rule("b")]),
            "b shares no input: the policy leaves it alone",
        ),
    ],
)
def test_what_a_policy_wants_apart_shares_nothing(policy: Policy, reason: str) -> None:
    told = fxdecomp.report(fxdecomp.transform(fxdecomp.trace(drawn(pair(both)), TOKENS), policy))
    assert any(reason in note for note in told.record.notes), told.record.notes
    assert all(not o.shares for o in told.applied)


def test_a_graph_is_read_in_its_order() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second, self.first = nn.Linear(6, 8), nn.Linear(6, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x) * self.second(x)

    gm = fxdecomp.trace(drawn(Crossed()), image(2, 6))
    told = fxdecomp.report(fxdecomp.transform(gm, Policy(rules=[Rule("*", share="input", rank=3)])))
    assert [o.site for o in told.applied] == ["first", "second"]
    assert told.applied[1].before_own == ("first.pointwise_in",)
