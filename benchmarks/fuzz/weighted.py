"""Blocks that hold weights: layers as modules and as functions, with weights of every kind."""

from __future__ import annotations

import math

from benchmarks.fuzz.building import Drawing, Shapes, Step

Made = Step | tuple[Step, Shapes] | None
KEYWORDS = ("class", "lambda", "from", "core", "pointwise_in", "0", "import")
"""Names that a layer may have: Python's own words, and those of a chain's stages."""
_HOOK = "register_forward_hook(lambda module, values, value: value * 0.5)"
_PRE_HOOK = "register_forward_pre_hook(lambda module, values: (values[0] * 0.5,))"


def step_of(d: Drawing, init: list[str], forward: str, source: str, *, products: bool = False) -> Step:
    """A step of one line of `forward`, an expression."""
    name = f"v{d.number}"
    return Step(name, tuple(init), (f"{name} = {forward}",), source, products)


def kernel(d: Drawing, ndim: int) -> str:
    sizes = [d.any(1, 1, 2, 3, 3, 3, 4) for _ in range(ndim)]
    return repr(tuple(sizes)) if d.chance(0.4) or ndim == 1 else repr(d.any(1, 3, 3, 5))


def geometry(d: Drawing, ndim: int, *, transposed: bool) -> dict[str, str]:
    """Stride, padding and dilation as keyword arguments."""
    options: dict[str, str] = {}
    if d.chance(0.35):
        options["stride"] = repr(d.any(2, 2, 3, tuple(d.any(1, 2) for _ in range(ndim))))
    if d.chance(0.25):
        options["dilation"] = repr(d.any(2, 2, tuple(d.any(1, 2) for _ in range(ndim))))
    if d.chance(0.7):
        choices = [1, 1, 2, tuple(d.whole(0, 2) for _ in range(ndim))]
        options["padding"] = repr(d.any(*choices))
    if transposed:
        if "stride" in options and d.chance(0.5):
            options["output_padding"] = "1"
    elif "stride" not in options and d.chance(0.25):
        options["padding"] = repr(d.any("same", "same", "valid"))
    return options


def words(options: dict[str, str]) -> str:
    return "".join(f", {key}={value}" for key, value in options.items())


def _wrapped(d: Drawing, layer: str, call: str) -> tuple[list[str], str]:
    """A module's lines and call: plain, under an odd name, parametrised, hooked, frozen, in train mode."""
    n = d.number
    kind = d.rng.random()
    if kind < 0.1:
        name = d.any(*KEYWORDS)
        return [f'self.l{n} = nn.ModuleDict({{"{name}": {layer}}})'], f'self.l{n}["{name}"]({call})'
    if kind < 0.24:
        wrap = d.any("weight_norm", "weight_norm", "spectral_norm", "orthogonal")
        return [f"self.l{n} = nn.utils.parametrizations.{wrap}({layer})"], f"self.l{n}({call})"
    lines = [f"self.l{n} = {layer}"]
    if kind < 0.29:
        lines.append(f"self.l{n}.{d.any(_HOOK, _PRE_HOOK)}")
    elif kind < 0.34:
        lines.append(f"self.l{n}.requires_grad_(False)")
    elif kind < 0.38:
        lines.append(f"self.l{n}.weight.data = self.l{n}.weight.data.transpose(0, 1).clone().transpose(0, 1)")
    elif kind < 0.41:
        lines.append(f"self.l{n}.weight.data[:, ::2] = 0")
    if kind > 0.93:  # the same module twice, where its output fits its input
        return lines, f"self.l{n}(self.l{n}({call}))"
    return lines, f"self.l{n}({call})"


def convolution(d: Drawing) -> Made:
    """A Conv or ConvTranspose as a module."""
    source = d.of(3, 4, 4, 5)
    if source is None:
        return None
    ndim, channels = len(d.shape(source)) - 2, d.shape(source)[1]
    transposed = d.chance(0.2)
    groups = d.any(*(g for g in (1, 1, 1, 2, 3, channels) if channels % g == 0))
    width = groups * d.whole(1, max(1, 12 // groups))
    options = geometry(d, ndim, transposed=transposed)
    if groups > 1:
        options["groups"] = str(groups)
    if d.chance(0.35):
        options["bias"] = "False"
    if not transposed and d.chance(0.1):
        options["padding_mode"] = repr(d.any("reflect", "circular", "replicate", "zeros"))
    kind = f"nn.Conv{'Transpose' if transposed else ''}{ndim}d"
    layer = f"{kind}({channels}, {width}, {kernel(d, ndim)}{words(options)})"
    lines, call = _wrapped(d, layer, source)
    return step_of(d, lines, call, source)


def linear(d: Drawing) -> Made:
    """A Linear over the last axis."""
    source = d.of(2, 2, 3, 3, 4)
    if source is None:
        return None
    bias = d.any("", "", ", bias=False")
    lines, call = _wrapped(d, f"nn.Linear({d.shape(source)[-1]}, {d.whole(1, 16)}{bias})", source)
    return step_of(d, lines, call, source)


def _stored(d: Drawing, shape: tuple[int, ...], name: str) -> tuple[list[str], str, Shapes]:
    """A weight of a shape: the lines that store it, the expression that gives it, and what may be shared."""
    scale = f"{max(math.prod(shape[1:]), 1) ** -0.5:.3f}"
    known = [other for other, of in d.weights.items() if of == shape]
    if known and d.chance(0.4):
        return [], f"self.{d.any(*known)}", {}
    kind, text = d.rng.random(), ", ".join(map(str, shape))
    plain = f"self.{name} = nn.Parameter(torch.randn({text}) * {scale})"
    if kind < 0.4:
        return [plain], f"self.{name}", {name: shape}
    if kind < 0.5:
        return (
            [f'self.register_buffer("{name}", torch.randn({text}) * {scale})'],
            f"self.{name}",
            {name: shape},
        )
    if kind < 0.6:
        more = ", ".join(map(str, (shape[0] + 2, *shape[1:])))
        first = d.any(f"[:{shape[0]}]", "[2:]", f"[1:{shape[0] + 1}]")
        return [f"self.{name} = nn.Parameter(torch.randn({more}) * {scale})"], f"self.{name}{first}", {}
    if kind < 0.68:
        stack = f"self.{name} = nn.Parameter(torch.randn(2, {text}) * {scale})"
        return [stack], f"self.{name}[{d.any('0', '1', '-1')}]", {}
    if kind < 0.76:
        turned = ", ".join(map(str, (shape[1], shape[0], *shape[2:])))
        lines = [f"self.{name} = nn.Parameter(torch.randn({turned}) * {scale})"]
        return lines, f"self.{name}.transpose(0, 1)", {}
    if kind < 0.84:
        return (
            [plain],
            f"({d.any('0.5 * ', '-', '')}self.{name}{d.any('', '.flip(1)', ' * 2')})",
            {name: shape},
        )
    if kind < 0.92:
        flat = f"self.{name} = nn.Parameter(torch.randn({math.prod(shape)}) * {scale})"
        return [flat], f"self.{name}.{d.any('view', 'reshape')}({text})", {}
    return [plain, f"self.{name}.requires_grad_(False)"], f"self.{name}.detach()", {name: shape}


def functional_convolution(d: Drawing) -> Made:
    """`F.conv2d` and its like."""
    source = d.of(3, 4, 4, 5)
    if source is None:
        return None
    ndim, channels = len(d.shape(source)) - 2, d.shape(source)[1]
    transposed = d.chance(0.2)
    groups = d.any(*(g for g in (1, 1, 1, 2, channels) if channels % g == 0))
    width = groups * d.whole(1, max(1, 8 // groups))
    kernel = tuple(d.any(1, 2, 3, 3) for _ in range(ndim))
    shape = (channels, width // groups, *kernel) if transposed else (width, channels // groups, *kernel)
    lines, weight, shared = _stored(d, shape, f"w{d.number}")
    bias, options = "None", geometry(d, ndim, transposed=transposed)
    if d.chance(0.5):
        bias = f"self.b{d.number}"
        lines.append(f"{bias} = nn.Parameter(torch.randn({width}) * 0.3)")
    options["groups"] = str(groups)
    name = f"F.conv{'_transpose' if transposed else ''}{ndim}d"
    step = step_of(d, lines, f"{name}({source}, {weight}, {bias}{words(options)})", source)
    return step, shared


def product(d: Drawing) -> Made:
    """A product with a matrix: `F.linear`, `@`, `torch.addmm`, `torch.einsum`."""
    source = d.of(2, 2, 3)
    if source is None:
        return None
    size, width = d.shape(source)[-1], d.whole(2, 12)
    bias = f"self.b{d.number}"
    extra = [f"{bias} = nn.Parameter(torch.randn({width}) * 0.3)"]
    kind = d.any("linear", "linear", "biased", "matmul", "added", "addmm", "einsum", "tied")
    if kind == "tied" and len(d.shape(source)) >= 2:
        lines = [f"self.{name}{d.number} = nn.Linear({size}, {size})" for name in "lm"]
        lines.append(f"self.m{d.number}.weight = self.l{d.number}.weight")
        return step_of(d, lines, f"self.m{d.number}(self.l{d.number}({source}).relu())", source)
    if kind in ("linear", "biased"):
        lines, weight, shared = _stored(d, (width, size), f"w{d.number}")
        given = f", {bias}" if kind == "biased" else ""
        return step_of(
            d, lines + extra * (kind == "biased"), f"F.linear({source}, {weight}{given})", source
        ), shared
    lines, weight, shared = _stored(d, (size, width), f"w{d.number}")
    if kind == "addmm":
        if len(d.shape(source)) != 2:
            return None
        return step_of(d, lines + extra, f"torch.addmm({bias}, {source}, {weight})", source), shared
    if kind == "einsum":
        return step_of(d, lines, f'torch.einsum("...i,ij->...j", {source}, {weight})', source), shared
    added = f" + {bias}" if kind == "added" else ""
    return step_of(d, lines + extra * bool(added), f"{source} @ {weight}{added}", source), shared
