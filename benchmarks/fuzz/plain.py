"""Blocks without weights: activations, views, what is changed in place, sums, reshaping, control flow."""

from __future__ import annotations

from benchmarks.fuzz.building import Block, Drawing, Step

_PURE = (
    "F.relu({})",
    "F.gelu({})",
    "torch.tanh({})",
    "{}.sigmoid()",
    "F.leaky_relu({}, 0.1)",
    "F.softmax({}, -1)",
    "F.dropout({}, 0.5, self.training)",
    "{}.clamp(-1.0, 1.0)",
    "F.elu({})",
    "{}.contiguous()",
    "{}.clone()",
    "{}.detach()",
    "-{}",
    "{}.abs() + 0.1",
)
_IN_PLACE = (
    "{}.relu_()",
    "{}.mul_(0.5)",
    "{}.add_(0.25)",
    "F.relu({}, inplace=True)",
    "F.hardtanh({}, -2.0, 2.0, inplace=True)",
    "{}.clamp_(-2.0, 2.0)",
    "{}.neg_()",
)
_VIEWS = (
    "{}[:, ::2]",
    "{}[:, :1]",
    "{}[..., 1:]",
    "{}.transpose(1, -1)",
    "{}.flatten(1)",
    "{}[:, -1]",
    "{}.unsqueeze(1)[:, 0]",
    "{}.view({}.shape)",
    "{}.narrow(1, 0, 1)",
    "{}.chunk(2, 1)[0]",
    "{}.unbind(-1)[0]",
    "{}.detach()",
)


def activation(d: Drawing) -> Step | None:
    """A function of every number."""
    source = d.of(2, 3, 4, 5)
    name = f"v{d.number}"
    return None if source is None else Step(name, (), (f"{name} = {d.any(*_PURE).format(source)}",), source)


def in_place(d: Drawing) -> Step | None:
    """A value that is changed where it is; those who took it before see the change."""
    source = d.of(2, 3, 4, 5)
    name, text = f"v{d.number}", d.any(*_IN_PLACE)
    return None if source is None else Step(name, (), (f"{name} = {text.format(source)}",), source)


def view(d: Drawing) -> Step | None:
    """A view; in a third of the cases something is written through it."""
    source = d.of(3, 4, 4, 5)
    if source is None:
        return None
    name, text = f"v{d.number}", d.any(*_VIEWS).replace("{}", source)
    lines = [f"{name} = {text}"]
    if d.chance(0.35):
        lines.append(d.any(*_IN_PLACE).format(name))
    elif d.chance(0.15):
        lines.append(f"{name}[:, 0] = {d.any('0.5', name + '[:, -1] * 0.5')}")
    return Step(name, (), tuple(lines), source)


def together(d: Drawing) -> Step | None:
    """Two values of one shape: added, multiplied, put side by side, or added in place."""
    source = d.of(2, 3, 4, 5)
    others = d.like(source) if source else []
    if source is None or not others:
        return None
    name, other = f"v{d.number}", d.any(*others)
    words = ("{a} + {b}", "{a} + {b}", "{a} * {b}.sigmoid()", "torch.cat([{a}, {b}], 1)", "{a}.add_({b})")
    text = d.any(*words, "torch.stack([{a}, {b}], 1).mean(1)", "torch.maximum({a}, {b})", "{a} - {b}")
    return Step(name, (), (f"{name} = {text.format(a=source, b=other)}",), source)


def pool(d: Drawing) -> Step | None:
    """Smaller or larger images and sequences."""
    source = d.of(3, 4, 4, 5)
    if source is None:
        return None
    name, ndim = f"v{d.number}", len(d.shape(source)) - 2
    words = [
        f"F.max_pool{ndim}d({source}, 2)",
        f"F.avg_pool{ndim}d({source}, 2, ceil_mode=True)",
        f"F.max_pool{ndim}d({source}, 3, 2, 1)",
        f"F.adaptive_avg_pool{ndim}d({source}, 2)",
        f"F.interpolate({source}, scale_factor=2)",
    ]
    if ndim < 3:
        words.append(f'F.pad({source}, (1, 1), mode="{d.any("constant", "reflect")}")' if ndim == 1 else "")
    if ndim == 2:
        words += [f"F.pixel_shuffle(torch.cat([{source}] * 4, 1), 2)", f"F.pad({source}, (1, 0, 2, 1))"]
    return Step(name, (), (f"{name} = {d.any(*filter(None, words))}",), source)


def reshaping(d: Drawing) -> Step | None:
    """Another number of axes."""
    source = d.of(2, 3, 4, 4, 5)
    if source is None:
        return None
    name, ndim = f"v{d.number}", len(d.shape(source))
    words = {
        2: ["{s}.unsqueeze(1)", "{s}.unsqueeze(-1)", "{s}.view({s}.shape[0], -1, 1, 1)"],
        3: ["{s}.mean(1)", "{s}.transpose(1, 2)", "{s}[:, -1]", "{s}.unsqueeze(2)", "{s}.flatten(1)"],
        4: [
            "{s}.flatten(2).transpose(1, 2)",
            "{s}.mean((2, 3))",
            "{s}.permute(0, 2, 3, 1)",
            "{s}.flatten(1)",
        ],
        5: ["{s}.flatten(3)", "{s}.mean(2)", "{s}.amax((2, 3, 4))", "{s}[:, :, 0]"],
    }[ndim]
    return Step(name, (), (f"{name} = {d.any(*words).format(s=source)}",), source)


def control(d: Drawing) -> Step | None:
    """Python that depends on sizes, which one tracer follows and the other does not."""
    source = d.of(2, 3, 4)
    if source is None:
        return None
    name, first = f"v{d.number}", d.shape(source)[1]
    lines = d.any(
        (f"{name} = {source} * 0.5 if {source}.shape[1] > 3 else {source} + 1",),
        (f"{name} = torch.stack([{source}[:, i] * (i + 1) for i in range({first})], 1)",),
        (f"{name} = torch.stack([c * 0.5 for c in {source}.unbind(1)], 1)",),
        (f"{name} = {source} / {source}.size(1)",),
        (f"{name} = {source}.reshape({source}.shape[0], -1)",),
        (f"{name} = {source}.masked_fill({source} > 0.5, 0.25)",),
        (f"{name} = torch.where({source} > 0, {source}, {source} * 0.1)",),
    )
    return Step(name, (), lines, source)


PLAIN: tuple[tuple[int, Block], ...] = (
    (3, activation),
    (3, in_place),
    (3, view),
    (4, together),
    (2, pool),
    (4, reshaping),
    (1, control),
)
