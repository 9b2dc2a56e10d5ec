"""How far a file and its graph may be apart where rounding alone is another.

Judged in double precision where that can be done. Else ten times what the outputs differ by where nothing but
rounding is another, the most of three: the file with optimisations off and on, the file on inputs whose last
bit is another, the graph in single and double precision.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from fxdecomp.export.agreement import TOLERANCES, distance
from fxdecomp.export.exact import file_in_double, graph_in_double
from fxdecomp.export.tensor_runs import run_on_tensors
from fxdecomp.sites.opaque import Opaque

_MARGIN = 10.0
_ANY = sys.float_info.max
"""A tolerance that only what is infinite or no number exceeds."""


def fair_tolerances(
    gm: GraphModule,
    path: Path,
    session: Any,
    value: Sequence[Any],
    *,
    wanted: Sequence[Any],
    found: Sequence[Sequence[Any]],
) -> list[float]:
    """A tolerance for each output, relative as those of `TOLERANCES`.

    Args:
        gm: The graph.
        path: The file.
        session: A session of the file, optimised.
        value: The inputs.
        wanted: What the graph gives for them.
        found: What the file gives, optimised last.

    Returns:
        By output: any, where graph and file agree in double precision; 0 where they do not and the file in
        double precision is the file; else what rounding does to it.
    """
    ours = graph_in_double(gm, value)
    noise = [_MARGIN * each for each in _noise(gm, session, value, wanted, found, exact=ours)]
    has_leaves = any(isinstance(module, Opaque) for module in gm.modules())  # which are in single precision
    theirs = None if ours is None or has_leaves else file_in_double(path, value)
    if ours is None or theirs is None or len(theirs) != len(wanted):
        return noise
    usual = TOLERANCES[torch.float32]
    tolerances = []
    for allowed, mine, exact, single in zip(noise, ours, theirs, found[-1], strict=True):
        agrees = distance(exact, mine) <= usual
        is_the_file = distance(single, exact) <= max(allowed, usual)
        tolerances.append(_ANY if agrees else 0.0 if is_the_file else allowed)
    return tolerances


def _noise(
    gm: GraphModule,
    session: Any,
    value: Sequence[Any],
    wanted: Sequence[Any],
    found: Sequence[Sequence[Any]],
    *,
    exact: list[Any] | None,
) -> list[float]:
    """How far each output is from itself where nothing but rounding is another."""
    usual = list(found[-1])
    others = [(usual, list(found[0]))]
    with suppress(Exception):  # what is a little less than a whole number may be no input
        others.append((usual, pytree.tree_leaves(run_on_tensors(session, [_nudged(each) for each in value]))))
    if exact is not None:
        others.append((list(wanted), exact))
    found_noise = [max(distance(a[index], b[index]) for a, b in others) for index in range(len(wanted))]
    return [max(noise, _of_a_probability(a, gm)) for noise, a in zip(found_noise, wanted, strict=True)]


def _of_a_probability(value: Any, gm: GraphModule) -> float:
    """What an output between 0 and 1 is uncertain by, where it comes from a sigmoid or a softmax.

    ONNX Runtime computes them to 1.2e-7 of 1, however small they are.
    """
    if not isinstance(value, Tensor) or value.dtype is not torch.float32 or not value.numel():
        return 0.0
    bounded = bool((value >= 0).all() and (value <= 1).all())
    kinds = (torch.sigmoid, torch.softmax, torch.nn.functional.softmax)
    leaves = any(isinstance(module, Opaque | nn.Sigmoid | nn.Softmax) for module in gm.modules())
    if not bounded or not (leaves or any(node.target in kinds for node in gm.graph.nodes)):
        return 0.0
    size = float(value.double().square().mean().sqrt())
    return torch.finfo(torch.float32).eps / size if size else 0.0


def _nudged(value: Any) -> Any:
    """A tensor with the last bit of every other number changed."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    sign = torch.ones(value.numel(), dtype=value.dtype).reshape(value.shape)
    sign.view(-1)[::2] = -1
    return value.cpu() * (1 + sign * torch.finfo(value.dtype).eps)
