"""`network_of`: one random network from a seed and a number."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import torch

from benchmarks.fuzz.around import attention, folding, normalisation, recurrent, scale
from benchmarks.fuzz.building import ROWS, Block, Drawing, Network, Step
from benchmarks.fuzz.odd import ODD
from benchmarks.fuzz.plain import PLAIN
from benchmarks.fuzz.weighted import convolution, functional_convolution, linear, product

METHODS = ("tucker2", "tucker2", "svd", "channel_svd", "spatial_svd", "tensor_train")
PLAINLY = "net"
"""What `trace` is given most often: the network itself."""
GIVEN = (
    *[PLAINLY] * 3,
    "torch.fx.symbolic_trace(copy.deepcopy(net).eval())",
    "torch.export.export(copy.deepcopy(net).eval(), values)",
    "torch.export.export(copy.deepcopy(net).eval(), values).run_decompositions()",
)
WEIGHTED: tuple[tuple[int, Block], ...] = (
    (6, convolution),
    (4, linear),
    (4, functional_convolution),
    (4, product),
    (3, normalisation),
    (6, folding),
    (2, recurrent),
    (2, attention),
    (2, scale),
)
_LAYERS = (convolution, linear, functional_convolution, product, folding)
_SHAPES: tuple[tuple[int, ...], ...] = (
    (8,),
    (12,),
    (6, 8),
    (5, 6),
    (3, 8, 8),
    (4, 7, 9),
    (8, 6, 6),
    (2, 4, 5, 5),
)


def network_of(seed: int, index: int) -> Network:
    """The network of a seed and a number, always the same; it has at least one Conv or Linear.

    Args:
        seed: Of a run.
        index: Of the network within the run.
    """
    rng = random.Random(f"{seed}:{index}")
    with torch.random.fork_rng([]):
        while True:
            drawn = _drawn(rng)
            if drawn is not None:
                return drawn


def _drawn(rng: random.Random) -> Network | None:
    weights = rng.randrange(2**31)
    torch.manual_seed(weights)
    arguments = [(rng.choice(_SHAPES), 0)]
    if rng.random() < 0.12:
        arguments = [((rng.randint(3, 7),), 20)]
    if rng.random() < 0.15:
        arguments.append((arguments[0][0] if not arguments[0][1] else (8,), 0))
    values = {
        f"x{place}": torch.randint(tokens, (ROWS, *shape)) if tokens else torch.randn(ROWS, *shape)
        for place, (shape, tokens) in enumerate(arguments)
    }
    d = Drawing(rng, values)
    if arguments[0][1]:
        width = rng.randint(4, 10)
        d.take(Step("v0", (f"self.l0 = nn.Embedding(20, {width})",), ("v0 = self.l0(x0)",)), {})
    blocks = [block for share, block in WEIGHTED + ODD + PLAIN for _ in range(share)]
    wanted, tries = rng.randint(3, 11), 0
    while len(d.steps) < wanted and tries < 80:
        tries += 1
        block = rng.choice(blocks if len(d.steps) + 1 < wanted or _has_layer(d) else _LAYERS)
        made = block(d)
        if made is not None:
            step, shared = made if isinstance(made, tuple) else (made, {})
            d.take(step, shared)
    if not _has_layer(d):
        return None
    steps = tuple(d.steps)
    given, training = rng.choice(GIVEN), rng.random() < 0.3
    text = "\n".join(line for step in steps for line in (*step.init, *step.forward))
    hooked = re.search(r"nn\.utils\.\w+_norm", text)  # which cannot be copied
    if hooked or "ModuleDict" in text or ("symbolic" in given and re.search(r"for c in|\] = ", text)):
        given = PLAINLY  # torch's own tracers fail at words of Python, and one of them at these
    return Network(weights, tuple(arguments), steps, _outputs(d), given, rng.choice(METHODS), training)


_WORDS = ("nn.Linear(", "nn.Conv", "F.conv", "F.linear(", "torch.addmm(")


def _has_layer(d: Drawing) -> bool:
    return any(_is_layer(step) for step in d.steps)


def _is_layer(step: Step) -> bool:
    return any(word in line for line in (*step.init, *step.forward) for word in _WORDS)


def _outputs(d: Drawing) -> str:
    """What the network returns, mostly its last value, else several in a structure; a layer is behind it."""
    floats = [name for name, value in d.values.items() if value.is_floating_point()]
    wanted = [d.steps[-1].name]
    if d.chance(0.35):
        wanted += [d.any(*floats) for _ in range(d.whole(1, 2))]
    layers = [step.name for step in d.steps if _is_layer(step)]
    if not live(d.steps, wanted).intersection(layers):
        wanted.append(layers[-1])
    if len(wanted) == 1:
        return wanted[0]
    several = ", ".join(wanted)
    named = ", ".join(f'"{key}": {name}' for key, name in zip("abcd", wanted, strict=False))
    nested = f'{{"a": {wanted[0]}, "b": [{", ".join(wanted[1:])}]}}'
    return d.any(f"({several})", f"[{several}]", f"{{{named}}}", nested)


def live(steps: Sequence[Step], wanted: Sequence[str]) -> set[str]:
    """The values that others are made of, back from those that are wanted."""
    found = set(wanted)
    for step in reversed(steps):
        if step.name in found:
            found |= {name for line in step.forward for name in re.findall(r"\b[vx]\d+\b", line)}
    return found
