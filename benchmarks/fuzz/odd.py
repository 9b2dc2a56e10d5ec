"""Blocks that use layers as they seldom are: unbatched, again by function, by keywords, in loops, nested."""

from __future__ import annotations

from benchmarks.fuzz.building import Block, Drawing, Step
from benchmarks.fuzz.weighted import step_of


def weight_again(d: Drawing) -> Step | None:
    """A Linear whose weight or bias is used once more beside it."""
    source = d.of(2, 3)
    if source is None:
        return None
    size, n = d.shape(source)[-1], d.number
    lines = [f"self.l{n} = nn.Linear({size}, {size})"]
    more = d.any(
        f"F.linear({source}, self.l{n}.weight)",
        f"{source} @ self.l{n}.weight.T",
        f"self.l{n}.bias",
        f"self.l{n}.weight.sum()",
        f"self.l{n}.weight[0]",
        f"F.linear({source}, self.l{n}.weight, self.l{n}.bias)",
        f"{source} @ self.l{n}.weight",
    )
    return step_of(d, lines, f"self.l{n}({source}) + {more}", source)


def unbatched(d: Drawing) -> Step | None:
    """Layers that are applied to each input by itself, without an axis for the batch."""
    source = d.of(2, 3, 4)
    if source is None:
        return None
    shape, n = d.shape(source), d.number
    layer = {
        2: f"nn.Linear({shape[-1]}, {d.whole(2, 9)})",
        3: f"nn.Conv1d({shape[1]}, {d.whole(2, 9)}, 3, padding=1)",
        4: f"nn.Conv2d({shape[1]}, {d.whole(2, 9)}, 3, padding=1, stride={d.whole(1, 2)})",
    }[len(shape)]
    call = f"torch.stack([self.l{n}({source}[0]), self.l{n}({source}[-1])]).mean(0) + {source}.mean()"
    step = step_of(d, [f"self.l{n} = {layer}"], f"({call}).unsqueeze(0) * {source}.flatten(1)[:, :1]", source)
    axes = ", ".join(["1"] * (len(shape) - 1))
    scaled = f"{step.name} = ({call}).unsqueeze(0) * {source}.flatten(1)[:, 0].view(-1, {axes})"
    return Step(step.name, step.init, (scaled,), source)


def by_keywords(d: Drawing) -> Step | None:
    """Functions whose arguments are given by name."""
    source = d.of(2, 3, 4)
    if source is None:
        return None
    shape, n, width = d.shape(source), d.number, d.whole(2, 8)
    bias = f"self.b{n} = nn.Parameter(torch.randn({width}) * 0.3)"
    if len(shape) == 4:
        lines = [f"self.w{n} = nn.Parameter(torch.randn({width}, {shape[1]}, 3, 3) * 0.2)", bias]
        call = f"F.conv2d(input={source}, weight=self.w{n}, bias=self.b{n}, padding=1)"
    else:
        lines = [f"self.w{n} = nn.Parameter(torch.randn({width}, {shape[-1]}) * 0.3)", bias]
        call = f"F.linear(input={source}, bias=self.b{n}, weight=self.w{n})"
    return step_of(d, lines, d.any(call, call.replace(f", bias=self.b{n}", "")), source)


def loop(d: Drawing) -> Step | None:
    """One block several times, or several in a list."""
    source = d.of(2, 3)
    if source is None:
        return None
    size, n, name = d.shape(source)[-1], d.number, f"v{d.number}"
    block = f"nn.Sequential(nn.Linear({size}, {size}), nn.ReLU(inplace=True), nn.Linear({size}, {size}))"
    if d.chance(0.5):
        lines = [f"self.l{n} = {block}"]
        body = [f"{name} = {source}", "for _ in range(3):", f"    {name} = {name} + 0.3 * self.l{n}({name})"]
    else:
        lines = [f"self.l{n} = nn.ModuleList({block} for _ in range(2))"]
        body = [f"{name} = {source}", f"for part in self.l{n}:", f"    {name} = part({name}) - {name}"]
    return Step(name, tuple(lines), tuple(body), source)


def seldom(d: Drawing) -> Step | None:
    """Layers that no method knows."""
    source = d.of(2, 3)
    if source is None:
        return None
    shape, n = d.shape(source), d.number
    size = shape[-1]
    stack = f"self.l{n} = nn.Parameter(torch.randn(1, 3, {size}, 4) * 0.3)"
    line, call, counted = d.any(
        (
            f"self.l{n} = nn.Bilinear({size}, {size}, {d.whole(1, 5)})",
            f"self.l{n}({source}, {source})",
            False,
        ),
        (f"self.l{n} = nn.PReLU()", f"self.l{n}({source})", True),
        (f"self.l{n} = nn.PReLU({shape[1]})", f"self.l{n}({source})", True),
        (stack, f"({source}.unsqueeze(-2).unsqueeze(-2) @ self.l{n}).flatten(1)", True),
        (f"self.l{n} = nn.Parameter(torch.ones({size}))", f"({source} @ self.l{n}).unsqueeze(-1)", False),
        (f"self.l{n} = nn.Linear(1, {size})", f"self.l{n}({source}[..., :1])", True),
    )
    return step_of(d, [line], call, source, products=not counted)  # torch does not count all of them


def decoder(d: Drawing) -> Step | None:
    """Attention to something else, with masks and keys of another size."""
    source = d.of(3)
    if source is None or d.shape(source)[-1] % 2:
        return None
    n, size, length = d.number, d.shape(source)[-1], d.shape(source)[1]
    if d.chance(0.5):
        lines = [f"self.l{n} = nn.TransformerDecoderLayer({size}, 2, 8, batch_first=True)"]
        return step_of(d, lines, f"self.l{n}({source}, {source}.flip(1))", source, products=True)
    lines = [f"self.l{n} = nn.MultiheadAttention({size}, 2, batch_first=True, kdim={size}, vdim={size})"]
    mask = f"torch.ones({length}, {length}, dtype=torch.bool).triu(1)"
    lines.append(f'self.register_buffer("m{n}", {mask})')
    keys = f"{source}.flip(1)"
    call = f"self.l{n}({source}, {keys}, {keys}, attn_mask=self.m{n}, need_weights=False)[0]"
    return step_of(d, lines, call, source, products=True)


def old_norms(d: Drawing) -> Step | None:
    """Parametrisations by hooks, as they were before."""
    source = d.of(2, 3, 4)
    if source is None:
        return None
    shape, n = d.shape(source), d.number
    layer = f"nn.Linear({shape[-1]}, 6)" if len(shape) < 4 else f"nn.Conv2d({shape[1]}, 6, 3, padding=1)"
    wrap = d.any("nn.utils.weight_norm", "nn.utils.spectral_norm")
    return step_of(d, [f"self.l{n} = {wrap}({layer})"], f"self.l{n}({source})", source)


ODD: tuple[tuple[int, Block], ...] = (
    (2, weight_again),
    (1, unbatched),
    (1, by_keywords),
    (1, loop),
    (2, seldom),
    (1, decoder),
    (1, old_norms),
)
