"""How far two networks are from each other, and what belongs to a network, to a graph and to the process.

The text of this module goes into the script of a failure, before that of the oracles.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

import fxdecomp

EXACT, SINGLE = 1e-9, 1e-3
"""Largest differences over the largest output: of float64 at full rank, of another runtime in float32."""


class WrongError(Exception):
    """Something that must hold does not."""


class TheirError(Exception):
    """PyTorch or ONNX Runtime fails by itself, without this package."""


@torch.no_grad()
def run(net: nn.Module, values: tuple[Any, ...]) -> Any:
    """What a network gives, on inputs of its own, the same chance each time."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return pytree.tree_map_only(Tensor, Tensor.clone, net(*(value.clone() for value in values)))


def tensors(nested: Any) -> list[Tensor]:
    """The tensors of a structure in order."""
    return [leaf for leaf in pytree.tree_leaves(nested) if isinstance(leaf, Tensor)]


def distance(wanted: Any, got: Any) -> float:
    """The largest difference over the largest output, at least 1e-3; infinite where structures differ."""
    one, other = tensors(wanted), tensors(got)
    same = pytree.tree_structure(wanted) == pytree.tree_structure(got)
    if not same or [each.shape for each in one] != [each.shape for each in other]:
        return float("inf")
    gaps = [
        float((a.double() - b.double()).abs().max() / max(float(a.abs().max()), 1e-3))
        for a, b in zip(one, other, strict=True)
    ]
    return max((gap if gap == gap else float("inf") for gap in gaps), default=0.0)


def root_mean_square(wanted: Any, got: Any) -> float:
    """The root of the mean square of the differences over that of the outputs, the worst of all outputs."""
    pairs = zip(tensors(wanted), tensors(got), strict=True)
    return max(float((a - b).square().mean().sqrt() / a.std().clamp_min(1e-3)) for a, b in pairs)


def expect(gap: float, allowed: float, what: str) -> None:
    """Raise where a difference is too large."""
    if not gap <= allowed:
        raise WrongError(f"{what} differs by {gap:.2g}, allowed {allowed:g}")


def expect_same(one: GraphModule, other: GraphModule, what: str) -> None:
    """Raise unless two graphs have the same code and the same tensors."""
    if one.code != other.code:
        raise WrongError(f"{what} changes the graph:\n{fxdecomp.graph_diff(one, other)}")
    first, second = one.state_dict(), other.state_dict()
    changed = [name for name in first.keys() | second.keys() if not alike(first.get(name), second.get(name))]
    if changed:
        raise WrongError(f"{what} changes {sorted(changed)[:3]}")


def alike(one: Any, other: Any) -> bool:
    """Whether two values are equal, NaN included."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and bool(((one == other) | (one != one) & (other != other)).all())
    return bool(one == other)


def macs(gm: GraphModule, values: tuple[Any, ...]) -> int:
    """Multiply-accumulates of a run by torch's own counter."""
    with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
        run(gm, values)  # recurrent layers are one operation of mkldnn, which the counter does not know
    return int(counter.get_total_flops()) // 2


def state(net: nn.Module) -> dict[str, Any]:
    """Tensors and modes of a network."""
    tensors = {name: value.detach().clone() for name, value in net.state_dict().items()}
    modes = {f"{name}.training": part.training for name, part in net.named_modules()}
    trains = {f"{name}.requires_grad": value.requires_grad for name, value in net.named_parameters()}
    return {**tensors, **modes, **trains}


def named(values: tuple[Any, ...]) -> dict[str, Any]:
    """Inputs by their place."""
    return {str(place): value for place, value in enumerate(values)}


def process_state() -> list[Any]:
    """What belongs to the process."""
    return [
        torch.get_rng_state().tolist(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        list(warnings.filters),
    ]


def given_names(gm: GraphModule) -> list[str]:
    """The names of a graph's inputs."""
    return [str(node.target) for node in gm.graph.nodes if node.op == "placeholder"]
