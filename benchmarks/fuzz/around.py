"""Blocks that hold weights and are no Conv or Linear, or one with a BatchNorm: what stands around layers."""

from __future__ import annotations

from benchmarks.fuzz.building import Drawing
from benchmarks.fuzz.weighted import Made, geometry, kernel, step_of, words


def _statistics(d: Drawing, name: str) -> list[str]:
    return [f"{name}.running_mean.normal_(0, 0.3)", f"{name}.running_var.uniform_(0.1, 1.5)"]


def normalisation(d: Drawing) -> Made:
    """A normalisation by itself, wherever it comes to stand."""
    source = d.of(2, 3, 4, 4, 5)
    if source is None:
        return None
    shape, n = d.shape(source), d.number
    channels, ndim = shape[1], max(len(shape) - 2, 1)
    kind = d.any("batch", "batch", "batch", "functional", "layer", "group", "instance", "rms")
    if kind == "layer":
        return step_of(d, [f"self.l{n} = nn.LayerNorm({shape[-1]})"], f"self.l{n}({source})", source)
    if kind == "rms":
        return step_of(d, [f"self.l{n} = nn.RMSNorm({shape[-1]})"], f"self.l{n}({source})", source)
    if kind == "group":
        return step_of(d, [f"self.l{n} = nn.GroupNorm(1, {channels})"], f"self.l{n}({source})", source)
    if kind == "instance" and len(shape) > 2:
        return step_of(d, [f"self.l{n} = nn.InstanceNorm{ndim}d({channels})"], f"self.l{n}({source})", source)
    lines, options = batch_norm(d, channels, ndim)
    if kind == "functional" and not options:
        b = f"self.l{n}"
        call = f"F.batch_norm({source}, {b}.running_mean, {b}.running_var, {b}.weight, {b}.bias)"
        return step_of(d, lines, call, source)
    return step_of(d, lines, f"self.l{n}({source})", source)


def batch_norm(d: Drawing, channels: int, ndim: int, letter: str = "l") -> tuple[list[str], str]:
    """The lines of a BatchNorm with statistics and weights of its own, and its options."""
    name = f"self.{letter}{d.number}"
    options = d.any("", "", "", ", affine=False", ", eps=1e-2", ", track_running_stats=False")
    lines = [f"{name} = nn.BatchNorm{ndim}d({channels}{options})"]
    if "track" not in options:
        lines += _statistics(d, name)
    if "affine" not in options:
        lines.append(f"nn.init.normal_({name}.weight, 1.0, 0.3), nn.init.normal_({name}.bias, 0.0, 0.3)")
        if d.chance(0.12):
            lines.append(f"{name}.weight.data[0] = {d.any('0.0', '1e-20', '1e-12')}")
    return lines, options


def folding(d: Drawing) -> Made:
    """A layer with a BatchNorm behind it, before it, or both, and an activation that may work in place."""
    source = d.of(2, 3, 4, 4, 4, 5)
    if source is None:
        return None
    shape, n = d.shape(source), d.number
    if len(shape) == 2 or (len(shape) == 3 and d.chance(0.3)):
        width = d.whole(2, 12)
        axis = width if len(shape) == 2 else shape[1]
        layer, ndim = f"nn.Linear({shape[-1]}, {width})", 1
    else:
        ndim, width = len(shape) - 2, d.whole(2, 10)
        axis = width
        kind = d.any("Conv", "Conv", "Conv", "ConvTranspose")
        options = geometry(d, ndim, transposed=kind != "Conv") | {"bias": d.any("True", "False")}
        layer = f"nn.{kind}{ndim}d({shape[1]}, {width}, {kernel(d, ndim)}{words(options)})"
    lines, call = [f"self.l{n} = {layer}"], source
    order = d.any("behind", "behind", "behind", "before", "both", "twice", "two uses")
    if order in ("before", "both"):
        lines += batch_norm(d, shape[1], ndim, "m")[0]
        call = f"self.m{n}({call})"
    call = f"self.l{n}({call})"
    if order in ("behind", "both", "twice", "two uses"):
        lines += batch_norm(d, axis, ndim, "n")[0]
        call = f"self.n{n}({call})"
    if order == "twice":
        lines += batch_norm(d, axis, ndim, "k")[0]
        call = f"self.k{n}({call})"
    if order == "two uses":
        return step_of(d, lines, f"{call} + self.l{n}({source})", source)
    after = d.any("", "F.relu({}, inplace=True)", "F.silu({})", "{}.tanh_()", "F.hardswish({})")
    return step_of(d, lines, after.format(call) if after else call, source)


def recurrent(d: Drawing) -> Made:
    """An LSTM, GRU or RNN, or a cell."""
    source = d.of(2, 3, 3)
    if source is None:
        return None
    shape, n = d.shape(source), d.number
    hidden = d.whole(2, 6)
    if len(shape) == 2:
        cell = d.any("LSTMCell", "GRUCell", "RNNCell")
        lines = [f"self.l{n} = nn.{cell}({shape[1]}, {hidden})"]
        return step_of(d, lines, f"self.l{n}({source})" + "[0]" * (cell == "LSTMCell"), source)
    options = ", batch_first=True" if d.chance(0.8) else ""
    options += d.any("", "", ", bidirectional=True", ", num_layers=2", ", bias=False")
    lines = [f"self.l{n} = nn.{d.any('LSTM', 'LSTM', 'GRU', 'RNN')}({shape[2]}, {hidden}{options})"]
    return step_of(d, lines, f"self.l{n}({source})[0]", source)


def attention(d: Drawing) -> Made:
    """Attention: as a module, an encoder layer, or written out."""
    source = d.of(3)
    if source is None or d.shape(source)[-1] < 2:
        return None
    n, size = d.number, d.shape(source)[-1]
    heads = 2 if size % 2 == 0 else 1
    kind = d.any("module", "encoder", "written", "scaled")
    if kind == "module":
        first = d.any(", batch_first=True", ", batch_first=True", "")
        lines = [f"self.l{n} = nn.MultiheadAttention({size}, {heads}{first}{d.any('', ', bias=False')})"]
        weights = d.any(", need_weights=False", "")
        return step_of(
            d, lines, f"self.l{n}({source}, {source}, {source}{weights})[0]", source, products=True
        )
    if kind == "encoder":
        options = d.any("", ", norm_first=True", ', activation="gelu"')
        lines = [f"self.l{n} = nn.TransformerEncoderLayer({size}, {heads}, 8, batch_first=True{options})"]
        return step_of(d, lines, f"self.l{n}({source})", source, products=True)
    lines = [f"self.{name}{n} = nn.Linear({size}, {size})" for name in "qkl"]
    q, k, v = (f"self.{name}{n}({source})" for name in "qkl")
    if kind == "scaled":
        return step_of(d, lines, f"F.scaled_dot_product_attention({q}, {k}, {v})", source, products=True)
    call = f"({q} @ {k}.transpose(1, 2) / {size**0.5:.3f}).softmax(-1) @ {v}"
    return step_of(d, lines, call, source, products=True)


def scale(d: Drawing) -> Made:
    """A parameter or a buffer that is added or multiplied, which may be a bias."""
    source = d.of(2, 3, 4, 5)
    if source is None:
        return None
    shape, n = d.shape(source), d.number
    sizes = d.any((shape[1], *[1] * (len(shape) - 2)), (shape[-1],), (1,))
    text = ", ".join(map(str, sizes))
    plain = f"self.w{n} = nn.Parameter(torch.randn({text}) * 0.3)"
    lines = [d.any(plain, f'self.register_buffer("w{n}", torch.randn({text}) * 0.3)')]
    return step_of(d, lines, f"{source} {d.any('+', '+', '-', '*')} self.w{n}", source)
