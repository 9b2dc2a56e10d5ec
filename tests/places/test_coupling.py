"""Which graphs share a layer's outputs with the layer that reads them, and why others keep their widths."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxdecomp
from fxdecomp import Policy, Reason, Rule
from tests.nets import drawn, image
from tests.places.dialects import dialect

HALF = Policy(rules=[Rule("a", width=0.5)])
TOKENS, MAPS = image(2, 5, 6), image(2, 4, 8, 8)


class Net(nn.Module):
    """Layers by name, and what is done with them."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def mlp(forward: Callable[..., Tensor], **more: nn.Module) -> Net:
    return Net(forward, a=nn.Linear(6, 16), b=nn.Linear(16, 6), **more)


def convs(forward: Callable[..., Tensor], **more: nn.Module) -> Net:
    return Net(forward, a=nn.Conv2d(4, 16, 3, padding=1), b=nn.Conv2d(16, 4, 3, padding=1), **more)


def gate(layer: Callable[..., nn.Module], *kernel: int) -> dict[str, nn.Module]:
    return {"squeeze": layer(16, 4, *kernel), "excite": layer(4, 16, *kernel)}


def gated(m: nn.Module, means: Tensor) -> Tensor:
    return F.relu6(m.excite(F.relu(m.squeeze(means))) + 3) / 6  # a hard sigmoid as mobile networks write it


def excited(m: nn.Module, x: Tensor) -> Tensor:
    y = F.silu(m.a(x))
    return m.b(gated(m, F.adaptive_avg_pool2d(y, 1)) * y)


FOLLOWED: dict[str, tuple[Callable[[], Net], Tensor]] = {
    "mlp": (lambda: mlp(lambda m, x: x + m.b(F.gelu(m.a(x)))), TOKENS),
    "gelu as files write it": (
        lambda: mlp(lambda m, x: m.b((y := m.a(x)) * 0.5 * (1 + torch.erf(y / 1.4142)))),
        TOKENS,
    ),
    "gated": (
        lambda: mlp(lambda m, x: m.b(F.silu(m.a(x)) * m.up(x)), up=nn.Linear(6, 16, bias=False)),
        TOKENS,
    ),
    "masked, dropped": (
        lambda: mlp(
            lambda m, x: m.b(m.drop(m.act(m.a(x)) * (x[..., :1] > 0))), act=nn.ReLU(), drop=nn.Dropout()
        ),
        TOKENS,
    ),
    "residual block": (lambda: convs(lambda m, x: F.relu(x + m.b(F.relu(m.a(x), inplace=True)))), MAPS),
    "norms": (
        lambda: convs(lambda m, x: m.b(torch.relu_(m.norm(m.a(x)))), norm=nn.BatchNorm2d(16)),
        MAPS,
    ),
    "inverted residual": (
        lambda: convs(
            lambda m, x: x + m.b(m.act(m.norm(m.deep(m.act(m.a(x)))))),
            deep=nn.Conv2d(16, 16, 3, padding=1, groups=16),
            norm=nn.BatchNorm2d(16),
            act=nn.ReLU6(),
        ),
        MAPS,
    ),
    "pools": (lambda: convs(lambda m, x: m.b(F.avg_pool2d(m.pool(m.a(x)), 2)), pool=nn.MaxPool2d(2)), MAPS),
    "head behind a pool": (
        lambda: Net(
            lambda m, x: m.b(torch.flatten(m.pool(F.relu(m.a(x))), 1)),
            a=nn.Conv2d(4, 16, 3),
            b=nn.Linear(16, 5),
            pool=nn.AdaptiveAvgPool2d(1),
        ),
        MAPS,
    ),
    "head behind a view": (
        lambda: Net(
            lambda m, x: m.b(F.relu(m.a(x)).mean(-1, keepdim=True).mean(-2, keepdim=True).view(-1, 16)),
            a=nn.Conv2d(4, 16, 3),
            b=nn.Linear(16, 5),
        ),
        MAPS,
    ),
    "head behind a mean": (
        lambda: Net(lambda m, x: m.b(m.a(x).relu().mean((2, 3))), a=nn.Conv2d(4, 16, 3), b=nn.Linear(16, 5)),
        MAPS,
    ),
    "sum of two": (
        lambda: convs(lambda m, x: m.b(F.relu(m.a(x) + m.other(x))), other=nn.Conv2d(4, 16, 1, bias=False)),
        MAPS,
    ),
    "transposed convolution": (
        lambda: Net(
            lambda m, x: m.b(F.relu(m.a(x))),
            a=nn.Conv2d(4, 16, 3, padding=1, stride=2),
            b=nn.ConvTranspose2d(16, 4, 4, stride=2, padding=1),
        ),
        MAPS,
    ),
    "squeezed and excited": (lambda: convs(excited, **gate(nn.Conv2d, 1)), MAPS),
    "excited by Linears": (
        lambda: convs(
            lambda m, x: m.b((y := m.deep(m.a(x))) * gated(m, y.mean((2, 3))).view(-1, 16, 1, 1)),
            deep=nn.Conv2d(16, 16, 3, padding=1, groups=16),
            **gate(nn.Linear),
        ),
        MAPS,
    ),
    "turned": (
        lambda: Net(
            lambda m, x: m.b(F.gelu(m.a(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)),
            a=nn.Linear(4, 16),
            b=nn.Conv2d(16, 4, 1),
        ),
        MAPS,
    ),
    "the next layer as well": (
        lambda: mlp(lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))), c=nn.Linear(6, 3)),
        TOKENS,
    ),
}


def without_half(make: Callable[[], Net]) -> Net:
    """A network half of whose inner channels nothing depends on."""
    model = drawn(make())
    with torch.no_grad():
        for name in ("b", "squeeze") if hasattr(model, "squeeze") else ("b",):
            weight = model.get_submodule(name).weight
            weight[(slice(None), slice(1, None, 2)) if weight.shape[1] == 16 else slice(1, None, 2)] = 0
    return model


WRITTEN = (
    "gelu as files write it",
    "gated",
    "inverted residual",
    "head behind a view",
    "squeezed and excited",
)
FORMS = [(form, name) for form in ("symbolic", "exported") for name in FOLLOWED]
FORMS += [("imported", name) for name in WRITTEN]  # each file takes seconds to write


@pytest.mark.parametrize(("form", "name"), FORMS)
def test_channels_that_nothing_depends_on_go_and_nothing_changes(
    form: str, name: str, tmp_path: Path
) -> None:
    make, x = FOLLOWED[name]
    model = without_half(make)
    exact = form != "imported"
    model, x = (model.double(), x.double()) if exact else (model, x)
    gm, x = dialect(model, x, form, tmp_path)
    before = fxdecomp.report(gm)
    small = fxdecomp.transform(gm, HALF)
    told = fxdecomp.report(small)
    rows = {o.site: o for o in told.applied}
    assert {
        rows[each].rank for each in ("a", "b", *(("squeeze", "excite") if "squeeze" in rows else ()))
    } == {(8,)}
    with torch.no_grad():
        assert float((small(x) - gm(x)).abs().max()) < (1e-12 if exact else 1e-5)
    assert told.params_after == sum(p.numel() for p in small.parameters())
    assert told.macs_before == before.macs_before
    assert told.macs_after == sum(site.macs for site in fxdecomp.sites.survey(small).sites)


def shuffled(m: nn.Module, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.b(y.view(2, 4, 4, 8, 8).transpose(1, 2).reshape(2, 16, 8, 8))


def excited_by_one(m: nn.Module, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.b(y * torch.sigmoid(m.c(y.mean((2, 3), keepdim=True))))


def stream(m: nn.Module, x: Tensor) -> Tensor:
    y = m.a(x)
    y += m.c(F.relu(y))
    return m.b(y)


def rotated(m: nn.Module, x: Tensor) -> Tensor:
    left, right = m.a(x).chunk(2, -1)
    return m.b(torch.cat((left - right, left + right), -1))


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, args, result: result)
    return layer


LEFT: dict[str, tuple[Callable[[], Net], Tensor, str]] = {
    "output": (
        lambda: Net(lambda m, x: m.a(m.b(x)), a=nn.Linear(6, 16), b=nn.Linear(6, 6)),
        TOKENS,
        "a is an output of the network",
    ),
    "residual inside": (
        lambda: mlp(lambda m, x: m.b(F.relu(m.a(x) + x.repeat(1, 1, 3)[..., :16]))),
        TOKENS,
        "which is no single layer's output",
    ),
    "residual stream in place": (
        lambda: mlp(stream, c=nn.Linear(16, 16)),
        TOKENS,
        "c reads outputs that it is joined with",
    ),
    "concatenated": (
        lambda: Net(lambda m, x: m.b(torch.cat((m.a(x), x), -1)), a=nn.Linear(6, 16), b=nn.Linear(22, 6)),
        TOKENS,
        "cat (cat) reads them",
    ),
    "two readers": (
        lambda: mlp(lambda m, x: m.b(m.a(x)) + m.c(m.a(x)), c=nn.Linear(16, 6)),
        TOKENS,
        "2 places",
    ),
    "two layers read one value": (
        lambda: mlp(lambda m, x: m.b(y := F.relu(m.a(x))) + m.c(y), c=nn.Linear(16, 6)),
        TOKENS,
        "b and c both read them",
    ),
    "a reader at two places": (
        lambda: Net(lambda m, x: m.b(F.relu(m.b(m.a(x)))), a=nn.Linear(6, 16), b=nn.Linear(16, 16)),
        TOKENS,
        "b, which reads them, is applied at 2 places",
    ),
    "reshaped": (
        lambda: mlp(lambda m, x: m.b(m.a(x).reshape(10, 16))),
        TOKENS,
        "reshape (reshape) reads them, through which channels are not followed",
    ),
    "of a computed size": (
        lambda: convs(lambda m, x: m.b(m.a(x).view(x.size(0), x.size(1) * 4, 8, 8))),
        MAPS,
        "view (view) reads them",
    ),
    "shuffled": (lambda: convs(shuffled), MAPS, "view (view) reads them"),
    "rotated": (lambda: mlp(rotated), TOKENS, "chunk (chunk) reads them"),
    "normalised": (
        lambda: mlp(lambda m, x: m.b(m.norm(m.a(x))), norm=nn.LayerNorm(16)),
        TOKENS,
        "norm (layernorm) reads them",
    ),
    "softmax": (lambda: mlp(lambda m, x: m.b(m.a(x).softmax(-1))), TOKENS, "softmax (softmax) reads them"),
    "product of activations": (
        lambda: mlp(lambda m, x: m.b((y := m.a(x)) @ y.mT @ y)),
        TOKENS,
        "the same outputs are on two sides of products",
    ),
    "grouped reader": (
        lambda: Net(lambda m, x: m.b(m.a(x)), a=nn.Conv2d(4, 16, 3), b=nn.Conv2d(16, 4, 3, groups=2)),
        MAPS,
        "b, which reads them, is grouped",
    ),
    "grouped": (
        lambda: Net(lambda m, x: m.b(m.a(x)), a=nn.Conv2d(4, 16, 3, groups=2), b=nn.Conv2d(16, 4, 3)),
        MAPS,
        "a has groups",
    ),
    "excited by one layer": (
        lambda: convs(excited_by_one, c=nn.Conv2d(16, 16, 1)),
        MAPS,
        "c reads outputs that it is joined with",
    ),
    "a gate beside another reader": (
        lambda: convs(
            lambda m, x: m.b(gated(m, (y := m.a(x)).mean((2, 3), keepdim=True)) * y) + m.c(y),
            c=nn.Conv2d(16, 4, 3, padding=1),
            **gate(nn.Conv2d, 1),
        ),
        MAPS,
        "both read them",
    ),
    "recurrent reader": (
        lambda: Net(lambda m, x: m.b(m.a(x))[0], a=nn.Linear(6, 16), b=nn.LSTM(16, 8)),
        TOKENS,
        "b, which reads them, is recurrent",
    ),
    "hooked": (
        lambda: mlp(lambda m, x: m.b(m.act(m.a(x))), act=hooked(nn.ReLU())),
        TOKENS,
        "act (call_module) reads them",
    ),
    "flattened with its positions": (
        lambda: Net(lambda m, x: m.b(m.a(x).flatten(1)), a=nn.Conv2d(4, 16, 7), b=nn.Linear(64, 3)),
        MAPS,
        "flatten (flatten) reads them",
    ),
    "another axis": (
        lambda: Net(lambda m, x: m.b(m.a(x)), a=nn.Conv2d(4, 16, 1), b=nn.Linear(8, 3)),
        MAPS,
        "b reads them along another axis",
    ),
    "nobody": (
        lambda: mlp(lambda m, x: m.b(x.repeat(1, 1, 3)[..., :16]) + 0 * m.a(x).sum()),
        TOKENS,
        "(sum) reads them",
    ),
    "sizes": (lambda: mlp(lambda m, x: m.b(y := m.a(x)) / y.shape[-1]), TOKENS, "getattr"),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_cannot_be_followed_keeps_its_width_and_says_why(name: str) -> None:
    make, x, told = LEFT[name]
    model = drawn(make())
    gm = fxdecomp.trace(model, x)
    small = fxdecomp.transform(gm, HALF)
    row = next(o for o in fxdecomp.report(small).outcomes if o.site == "a")
    assert row.reason is Reason.WIDTH
    assert told in row.detail
    with torch.no_grad():
        assert torch.equal(small(x), gm(x))


def test_layers_that_are_no_sites_keep_their_own_reasons() -> None:
    model = drawn(mlp(lambda m, x: m.b(F.relu(m.a(x))) @ m.a.weight[:6]))
    row = next(
        o
        for o in fxdecomp.report(fxdecomp.transform(fxdecomp.trace(model, TOKENS), HALF)).outcomes
        if o.site == "a"
    )
    assert row.reason is Reason.TIED_WEIGHT
