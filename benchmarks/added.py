"""Layers whose outputs are added with one last stage for all against a chain for each.

    before   x1 -> a -> + -> y        shared   x1 -> a1 (R) -> + -> out (R -> y)
             x2 -> b -> +                      x2 -> b1 (R) -> +

`y = [A B] [x1; x2]` is one product, and its whitened SVD the best chain of rank R for it. That takes
`R (in1 + in2 + out)` multiply-accumulates at each position, a chain each `R1 (in1 + out) + R2 (in2 + out)`.
Of these the ranks, or the layer as it is, are taken whose squared errors have the least sum at equal
multiply-accumulates. Both are fitted to inputs from what is compressed before them and to outputs of the
original network. The networks here hold composed weights: only what they compute matters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxdecomp
from benchmarks.digit_networks import Transformer, digit_cnn, digit_images, trained
from fxdecomp.graphs.copies import copy_sharing_tensors
from fxdecomp.linalg.cholesky import cholesky
from fxdecomp.passes import FoldBatchNorm

SHARES = (0.8, 0.6, 0.5, 0.35)
FITTED = 256
Layer = nn.Conv2d | nn.Linear


class Parallel(nn.Module):
    """A block whose attention and MLP read one tensor and are added (Wang and Komatsuzaki 2021, GPT-J)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `[N, T, width]` to tokens."""
        z = self.norm(x)
        query, key, value = self.qkv(z).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        y: Tensor = x + (self.out(mixed) + self.down(nn.functional.gelu(self.up(z))))
        return y


def parallel() -> nn.Module:
    """The benchmarks' transformer with parallel blocks."""
    network = Transformer()
    network.blocks = nn.Sequential(*(Parallel(96, 4) for _ in range(3)))
    return network


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[str, str]]] = {
    "residual network": (digit_cnn, ("two", "shortcut")),
    "parallel transformer": (parallel, ("down", "out")),
}
"""How each is made, and which layers of a block are added."""


class Fit:
    """The best chain of full rank for some rows of inputs and outputs.

    Attributes:
        errors: Its squared error when it is cut to each rank, from 0 on.
    """

    def __init__(self, z: Tensor, y: Tensor) -> None:
        z, y = z - z.mean(0), y - y.mean(0)
        lower = cholesky(z.T @ z / len(z))
        whitened = torch.linalg.solve_triangular(lower, z.T @ y / len(z), upper=False).T
        self._U, S, V = torch.linalg.svd(whitened, full_matrices=False)
        self._inner = torch.linalg.solve_triangular(lower.T, (S[:, None] * V).T, upper=True).T
        tails = S.square().flip(0).cumsum(0).flip(0)
        unfit = y.square().sum(1).mean() - S.square().sum()
        self.errors = (unfit + torch.cat((tails, tails.new_zeros(1)))).tolist()

    def weight(self, rank: int) -> Tensor:
        """`[out, in]` of a rank."""
        found: Tensor = self._U[:, :rank] @ self._inner[:rank]
        return found


class Pair:
    """Two layers that are added."""

    def __init__(self, gm: GraphModule, names: Sequence[str]) -> None:
        self._gm, self._names = gm, names
        self._layers = [layer for name in names if isinstance(layer := gm.get_submodule(name), Layer)]
        self._weights = [layer.weight.detach().double().flatten(1) for layer in self._layers]
        self._sizes, self._out = [weight.shape[1] for weight in self._weights], len(self._weights[0])

    def compress(self, small: GraphModule, images: Tensor, share: float, *, shared: bool) -> None:
        """Put chains of a share of their multiply-accumulates into a graph that is compressed before them."""
        wanted = [x @ w.T for x, w in zip(self._inputs(self._gm, images), self._weights, strict=True)]
        given, budget = self._inputs(small, images), share * self._out * sum(self._sizes)
        if shared:
            rank = int(budget / (sum(self._sizes) + self._out))
            joint = Fit(torch.cat(given, 1), wanted[0] + wanted[1]).weight(rank)
            weights = [*torch.split(joint, self._sizes, 1)]
        else:
            weights = self._apart([Fit(*rows) for rows in zip(given, wanted, strict=True)], budget)
        for layer, name, x, y, weight in zip(self._layers, self._names, given, wanted, weights, strict=True):
            new = copy_of(layer)
            new.weight = nn.Parameter(weight.reshape(layer.weight.shape).float())
            assert layer.bias is not None  # of FoldBatchNorm, or the layer's own; narrows the type
            new.bias = nn.Parameter((layer.bias + y.mean(0) - weight @ x.mean(0)).float())
            small.set_submodule(name, new)

    def _apart(self, fits: Sequence[Fit], budget: float) -> list[Tensor]:
        """The chains whose errors have the least sum within a budget."""
        options = []
        for size, fit in zip(self._sizes, fits, strict=True):
            chains = [(rank * (size + self._out), fit.errors[rank], rank) for rank in range(len(fit.errors))]
            options.append([*chains, (size * self._out, fit.errors[-1], len(fit.errors) - 1)])
        ranks = min(
            (one[1] + other[1], one[2], other[2])
            for one in options[0]
            for other in options[1]
            if one[0] + other[0] <= budget
        )[1:]
        return [fit.weight(rank) for fit, rank in zip(fits, ranks, strict=True)]

    def _inputs(self, gm: GraphModule, images: Tensor) -> list[Tensor]:
        """What each layer multiplies, `[positions, size]`."""
        seen: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            return lambda _, given: seen.update({name: given[0]})

        hooks = [gm.get_submodule(name).register_forward_pre_hook(keep(name)) for name in self._names]
        gm(images)
        for hook in hooks:
            hook.remove()
        return [
            rows(layer, seen[name]).double() for layer, name in zip(self._layers, self._names, strict=True)
        ]


def copy_of(layer: Layer) -> Layer:
    """A layer of the same geometry."""
    if isinstance(layer, nn.Conv2d):
        sizes = layer.in_channels, layer.out_channels
        (kernel, *_), (stride, *_), padding = layer.kernel_size, layer.stride, int(layer.padding[0])
        return nn.Conv2d(*sizes, kernel, stride, padding)
    return nn.Linear(layer.in_features, layer.out_features)


def rows(layer: Layer, x: Tensor) -> Tensor:
    """What one position of a layer's output sees, `[positions, size]`."""
    if isinstance(layer, nn.Conv2d):
        patches = nn.functional.unfold(
            x, layer.kernel_size, padding=int(layer.padding[0]), stride=layer.stride
        )
        return patches.mT.flatten(0, 1)
    return x.flatten(0, -2)


@torch.no_grad()
def lines(rounds: int, told: Callable[[GraphModule, GraphModule], str]) -> Iterator[str]:
    """Each network, and what becomes of it at each share.

    Args:
        rounds: Of training.
        told: What is said of a network that stands for another.
    """
    images = digit_images()[0]
    for name, (build, added) in NETWORKS.items():
        with torch.enable_grad():
            network = trained(build, 1, rounds)
        gm = FoldBatchNorm()(fxdecomp.trace(network, images[:1]))
        blocks = [
            each.removesuffix(added[0]) for each, _ in gm.named_modules() if each.endswith(f".{added[0]}")
        ]
        pairs = [Pair(gm, [block + each for each in added]) for block in blocks]
        yield f"{name}: {told(gm, gm)}"
        for share in SHARES:
            for kind, shared in (("a chain each", False), ("shared", True)):
                small = copy_sharing_tensors(gm)
                for pair in pairs:
                    pair.compress(small, images[:FITTED], share, shared=shared)
                yield f"{name}, {share} {kind}: {told(small, gm)}"
