"""Which heads of attention are found and become narrower, in which dialects, and why others stay."""

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

HEADS, SIZE, WIDTH = 3, 4, 12
TOKENS, MAPS = image(2, 5, WIDTH), image(2, WIDTH, 2, 3)
POLICY = Policy(rules=[Rule("*", width=0.5)])


class Net(nn.Module):
    """Layers by name, and what is done with them."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def apart(forward: Callable[..., Tensor], keys: int = WIDTH, **more: nn.Module) -> Net:
    layers = {"q": WIDTH, "k": keys, "v": keys, "o": WIDTH}
    return Net(forward, **{name: nn.Linear(WIDTH, size) for name, size in layers.items()}, **more)


def fused(forward: Callable[..., Tensor], size: int = 3 * WIDTH, **more: nn.Module) -> Net:
    return Net(forward, qkv=nn.Linear(WIDTH, size), o=nn.Linear(WIDTH, WIDTH), **more)


def split(y: Tensor, heads: int = HEADS) -> Tensor:
    return y.view(2, 5, heads, SIZE).transpose(1, 2)


def merged(y: Tensor) -> Tensor:
    return y.transpose(1, 2).reshape(2, 5, WIDTH)


def in_one_node(m: nn.Module, x: Tensor) -> Tensor:
    mixed = F.scaled_dot_product_attention(split(m.q(x)), split(m.k(x)), split(m.v(x)))
    return m.o(mixed.transpose(1, 2).flatten(2))


def by_products(m: nn.Module, x: Tensor) -> Tensor:
    """As it is written most: sizes read, a mask, a scale of the heads' size."""
    n, t, c = x.shape
    q, k, v = (each(x).view(n, t, HEADS, c // HEADS).transpose(1, 2) for each in (m.q, m.k, m.v))
    scores = (q @ k.transpose(-2, -1)) / k.size(-1) ** 0.5
    scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf"))
    return m.o((F.dropout(scores.softmax(-1), 0.1, False) @ v).transpose(1, 2).contiguous().view(n, t, c))


def merged_batch(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (
        each(x).reshape(2, 5, HEADS, SIZE).permute(0, 2, 1, 3).reshape(6, 5, SIZE) for each in (m.q, m.k, m.v)
    )
    mixed = torch.bmm(torch.softmax(torch.bmm(q * 0.5, k.transpose(1, 2)), -1), v)
    return m.o(mixed.view(2, HEADS, 5, SIZE).permute(0, 2, 1, 3).reshape(2, 5, WIDTH))


def by_einsum(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (each(x).unflatten(-1, (HEADS, SIZE)) for each in (m.q, m.k, m.v))
    scores = torch.einsum("bthd,bshd->bhts", q, k) * m.heat
    return m.o(torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v).reshape(2, 5, WIDTH))


def in_thirds(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    return m.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def in_chunks(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).split(WIDTH, dim=2)
    return m.o(merged(F.scaled_dot_product_attention(split(q), split(k), split(v), is_causal=True)))


def sliced(m: nn.Module, x: Tensor) -> Tensor:
    y = m.qkv(x)
    q, k, v = split(y[..., :WIDTH]), split(y[:, :, WIDTH : 2 * WIDTH]), split(y[..., 2 * WIDTH :])
    return m.o(merged((q @ k.mT * SIZE**-0.5).softmax(-1) @ v))


def heads_first(m: nn.Module, x: Tensor) -> Tensor:
    """Every head's queries, keys and values side by side."""
    q, k, v = m.qkv(x).view(2, 5, HEADS, 3 * SIZE).transpose(1, 2).chunk(3, dim=-1)
    return m.o(merged(F.scaled_dot_product_attention(q, k, v, scale=0.3)))


def few_keys(m: nn.Module, x: Tensor) -> Tensor:
    k, v = (split(each(x), 1).expand(2, HEADS, 5, SIZE) for each in (m.k, m.v))
    return m.o(merged(F.scaled_dot_product_attention(split(m.q(x)), k, v)))


def repeated_keys(m: nn.Module, x: Tensor) -> Tensor:
    k, v = (split(each(x), 1) for each in (m.k, m.v))
    return m.o(merged(F.scaled_dot_product_attention(split(m.q(x)), k, v, enable_gqa=True)))


def crossed(m: nn.Module, x: Tensor) -> Tensor:
    k, v = m.kv(x.flip(1)).view(2, 5, 2, HEADS, SIZE).permute(2, 0, 3, 1, 4).unbind(0)
    return m.o(merged(F.scaled_dot_product_attention(split(m.q(x)), k, v)))


def of_maps(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).view(2, 3, HEADS, SIZE, 6).unbind(1)
    mixed = v @ (q.mT @ k * 0.5).softmax(-1).mT
    return x + m.o(mixed.reshape(2, WIDTH, 2, 3))


def by_size(m: nn.Module, x: Tensor) -> Tensor:
    """Sizes that are computed together, as older transformers do."""
    sizes = x.size()[:-1] + torch.Size((HEADS, SIZE))
    q, k, v = (each(x).view(sizes).permute(0, 2, 1, 3) for each in (m.q, m.k, m.v))
    mixed = ((q @ k.transpose(-1, -2)) / 2 + m.heat).softmax(-1) @ v
    mixed = mixed.permute(0, 2, 1, 3).contiguous()
    return m.o(mixed.view(mixed.size()[:-2] + torch.Size((WIDTH,))))


def heated(forward: Callable[..., Tensor]) -> Net:
    net = apart(forward)
    net.heat = nn.Parameter(torch.rand(HEADS, 1, 1) + 0.5)
    return net


FOUND: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "in one node": (lambda: apart(in_one_node), TOKENS),
    "by products": (lambda: apart(by_products), TOKENS),
    "heads in the batch": (lambda: apart(merged_batch), TOKENS),
    "by einsum": (lambda: heated(by_einsum), TOKENS),
    "sizes together": (lambda: heated(by_size), TOKENS),
    "in thirds": (lambda: fused(in_thirds), TOKENS),
    "in chunks": (lambda: fused(in_chunks), TOKENS),
    "sliced": (lambda: fused(sliced), TOKENS),
    "heads first": (lambda: fused(heads_first), TOKENS),
    "few keys": (lambda: apart(few_keys, SIZE), TOKENS),
    "repeated keys": (lambda: apart(repeated_keys, SIZE), TOKENS),
    "crossed": (
        lambda: Net(
            crossed,
            q=nn.Linear(WIDTH, WIDTH),
            kv=nn.Linear(WIDTH, 2 * WIDTH, bias=False),
            o=nn.Linear(WIDTH, 7),
        ),
        TOKENS,
    ),
    "of maps": (lambda: Net(of_maps, qkv=nn.Conv2d(WIDTH, 3 * WIDTH, 1), o=nn.Conv2d(WIDTH, WIDTH, 1)), MAPS),
    "torch's own": (
        lambda: Net(
            lambda m, x: m.at(x, x, x, need_weights=False)[0],
            at=nn.MultiheadAttention(WIDTH, HEADS, batch_first=True),
        ),
        TOKENS,
    ),
}


def thin(model: nn.Module, size: int = SIZE) -> nn.Module:
    """A network whose heads, of `size` channels side by side, have two dimensions each."""
    model = drawn(model).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith(("o.", "at.out", "heat")):
                blocks = parameter.reshape(len(parameter) // size, size, -1)
                plane = torch.linalg.qr(image(len(blocks), size, 2, seed=3).double()).Q
                parameter.copy_((plane @ (plane.mT @ blocks)).reshape(parameter.shape))
    return model


OTHERWISE = ("in one node", "by products", "by einsum", "in chunks", "sliced", "few keys", "of maps")
FORMS = [("symbolic", name) for name in FOUND] + [("exported", name) for name in OTHERWISE]
FORMS += [("imported", name) for name in ("by products",)]  # each file takes seconds to write


@pytest.mark.parametrize(("form", "name"), FORMS)
def test_dimensions_that_no_head_has_go_and_nothing_changes(form: str, name: str, tmp_path: Path) -> None:
    make, x = FOUND[name]
    model, x = (thin(make()), x.double()) if form != "imported" else (thin(make()).float(), x)
    gm, x = dialect(model, x, form, tmp_path)
    before = fxdecomp.report(gm)
    small = fxdecomp.transform(gm, POLICY)
    told = fxdecomp.report(small)
    layers = [o for o in told.outcomes if o.layer.startswith(("Linear", "Conv"))]
    assert [(o.method, o.macs_after) for o in layers] == [("width", o.macs_before / 2) for o in layers]
    with torch.no_grad():
        assert float((small(x) - gm(x)).abs().max()) < (1e-12 if form != "imported" else 1e-5)
    assert told.params_after == sum(p.numel() for p in small.parameters())
    assert told.macs_before == before.macs_before
    assert told.macs_after == sum(site.macs for site in fxdecomp.sites.survey(small).sites)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return merged(((q @ k.mT) / 2).softmax(-1) @ v)


def parts(m: nn.Module, x: Tensor) -> list[Tensor]:
    return [split(each(x)) for each in (m.q, m.k, m.v)]


def rotated(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = parts(m, x)
    angle = torch.arange(5.0)[:, None] * torch.tensor([1.0, 0.1, 1.0, 0.1])
    q = q * angle.cos() + torch.cat((-q[..., 2:], q[..., :2]), -1) * angle.sin()
    return m.o(attend(q, k, v))


def normed(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = parts(m, x)
    return m.o(attend(F.layer_norm(q, (SIZE,)), k, v))


def cached(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = parts(m, x)
    return m.o(attend(q, torch.cat((m.past.expand(2, HEADS, 1, SIZE), k), 2), torch.cat((v[:, :, :1], v), 2)))


def shifted(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = parts(m, x)
    return m.o(attend(q + m.past, k, v))


def learned(m: nn.Module, x: Tensor) -> Tensor:
    _, k, v = parts(m, x)
    return m.o(attend(m.past.expand(2, HEADS, 5, SIZE), k, v)) + 0 * m.q(x)


def positions(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = parts(m, x)
    return m.o(merged((q @ k.mT + q @ m.past.mT).softmax(-1) @ v))


def linear(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = parts(m, x)
    return m.o(merged(q.softmax(-1) @ (k.softmax(-2).mT @ v)))


def over_channels(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = parts(m, x)
    return m.o(merged(v @ (q.mT @ k).softmax(-1)))


def weighed(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = parts(m, x)
    return m.o(attend(q * torch.tensor([1.0, 2.0, 3.0, 4.0]), k, v))


def also_read(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = parts(m, x)
    return m.o(attend(q, k, v)) + m.more(merged(q))


def unprojected(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = parts(m, x)
    return x + attend(q, k, v) + 0 * m.o(x)


def shared(m: nn.Module, x: Tensor) -> Tensor:
    q = split(m.q(x))
    return m.o(attend(q, q, split(m.v(x)))) + 0 * m.k(x)


def twice(m: nn.Module, x: Tensor) -> Tensor:
    return m.o(attend(split(m.q(x)), split(m.q(x.flip(1))), split(m.v(x)))) + 0 * m.k(x)


def gated(m: nn.Module, x: Tensor) -> Tensor:
    y = m.qkv(x)
    q, k, v = (split(each) for each in y[..., : 3 * WIDTH].chunk(3, -1))
    return m.o(attend(q, k, v)) * torch.sigmoid(y[..., 3 * WIDTH :].mean(-1, keepdim=True))


def wide_values(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).split([6, 6, 12], -1)
    q, k = (each.view(2, 5, HEADS, 2).transpose(1, 2) for each in (q, k))
    return m.o(attend(q, k, split(v)))


def parted(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (m.part(each(x)).transpose(1, 2) for each in (m.q, m.k, m.v))
    return m.o(attend(q, k, v))


def past(forward: Callable[..., Tensor], *shape: int) -> Net:
    net = apart(forward)
    net.past = nn.Parameter(torch.rand(HEADS, *shape))
    return net


LEFT: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "rotary positions": (lambda: apart(rotated), "q", "neg (neg) reads them, through which they"),
    "a norm over a head": (lambda: apart(normed), "q", "layer_norm (layer_norm) reads them"),
    "a cache": (
        lambda: past(cached, 1, SIZE),
        "k",
        "cat (cat) reads them, through which they are not followed",
    ),
    "something added": (lambda: past(shifted, 1, SIZE), "q", "add (add) reads them"),
    "learned queries": (
        lambda: past(learned, 1, SIZE),
        "k",
        "with expand, which is no single layer's output",
    ),
    "relative positions": (lambda: past(positions, 5, SIZE), "q", "which is no single layer's output"),
    "linear attention": (lambda: apart(linear), "q", "softmax (softmax) reads them"),
    "attention over channels": (lambda: apart(over_channels), "q", "softmax (softmax) reads them"),
    "other factors in a head": (lambda: apart(weighed), "q", "by different numbers"),
    "another reader": (lambda: apart(also_read, more=nn.Linear(WIDTH, WIDTH)), "q", "one layer should read"),
    "no layer behind": (lambda: apart(unprojected), "v", "add (add) reads them"),
    "one for queries and keys": (lambda: apart(shared), "q", "on two sides of products"),
    "one at two places": (lambda: apart(twice), "q", "q is applied at 2 places"),
    "other outputs": (lambda: fused(gated, 3 * WIDTH + 4), "qkv", "reads them"),
    "values of another size": (lambda: fused(wide_values, 24), "qkv", "heads of 2 and of 4 channels"),
    "sizes in a module": (
        lambda: apart(parted, part=nn.Unflatten(-1, (HEADS, SIZE))),
        "q",
        "narrower heads do not fit",
    ),
    "groups": (
        lambda: Net(of_maps, qkv=nn.Conv2d(WIDTH, 3 * WIDTH, 1, groups=3), o=nn.Conv2d(WIDTH, WIDTH, 1)),
        "qkv",
        "qkv has groups",
    ),
    "a reader of patches": (
        lambda: Net(of_maps, qkv=nn.Conv2d(WIDTH, 3 * WIDTH, 1), o=nn.Conv2d(WIDTH, WIDTH, 3, padding=1)),
        "qkv",
        "does more than mix channels",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_else_meets_heads_keeps_their_size_and_is_told(name: str) -> None:
    make, site, told = LEFT[name]
    model = drawn(make())
    x = MAPS if hasattr(model, "qkv") and isinstance(model.qkv, nn.Conv2d) else TOKENS
    gm = fxdecomp.trace(model, x)
    small = fxdecomp.transform(gm, Policy(rules=[Rule(site, width=0.5)]))
    row = next(o for o in fxdecomp.report(small).outcomes if o.site == site)
    assert row.reason is Reason.WIDTH
    assert told in row.detail
    with torch.no_grad():
        assert torch.equal(small(x), gm(x))
