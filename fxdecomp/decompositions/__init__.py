"""The methods: one file each, in the registry tuple `METHODS`; those of other packages are entry points."""

from __future__ import annotations

import difflib
import logging
from functools import cache
from importlib.metadata import entry_points

from fxdecomp.decompositions.base import (
    Decomposition,
    decompose,
    problems_of,
    refusal_of,
)
from fxdecomp.decompositions.channel_svd import ChannelSVD
from fxdecomp.decompositions.cp import CP
from fxdecomp.decompositions.cp3 import CP3
from fxdecomp.decompositions.problem import Problem, Spectrum
from fxdecomp.decompositions.rank_grid import Rank, RankGrid
from fxdecomp.decompositions.spatial_svd import SpatialSVD
from fxdecomp.decompositions.svd import SVD
from fxdecomp.decompositions.tensor_train import TensorTrain
from fxdecomp.decompositions.tucker2 import Tucker2
from fxdecomp.errors import PolicyError
from fxdecomp.layers import LayerSpec

__all__ = [
    "METHODS",
    "Decomposition",
    "Problem",
    "Rank",
    "RankGrid",
    "Spectrum",
    "all_methods",
    "decompose",
    "method_for",
    "method_named",
    "problems_of",
    "refusal_of",
]

METHODS: tuple[Decomposition, ...] = (
    SVD(),
    Tucker2(),
    CP(),
    CP3(),
    SpatialSVD(),
    ChannelSVD(),
    TensorTrain(),
)


ENTRY_POINTS = "fxdecomp.methods"
"""The group of entry points under which a package offers methods: a subclass of `Decomposition` each."""

_log = logging.getLogger(__name__)


@cache
def all_methods() -> tuple[Decomposition, ...]:
    """`METHODS`, and behind them those of installed packages, by their names.

    What cannot be loaded, is no method, or takes a name that is there already is left out, with a warning.
    """
    found = {method.name: method for method in METHODS}
    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name):
        try:
            method = entry.load()()
            problem = "" if isinstance(method, Decomposition) else "it is no Decomposition"
        except Exception as error:  # noqa: BLE001 - the code of other packages may raise anything
            problem = f"{type(error).__name__}: {error}"
        if not problem and found.setdefault(method.name, method) is not method:
            problem = f"there is another method {method.name!r}"
        if problem:
            _log.warning("the method %s (%s) is left out: %s", entry.name, entry.value, problem)
    return tuple(found.values())


def method_named(name: str) -> Decomposition:
    """The method of a name.

    Raises:
        PolicyError: There is no such method; the message offers the nearest names.
    """
    methods = {method.name: method for method in all_methods()}
    if name in methods:
        return methods[name]
    near = difflib.get_close_matches(name, methods, cutoff=0.5)
    hint = f"use {' or '.join(near)}; there are" if near else "use one of"
    raise PolicyError(f"there is no method {name!r}; {hint} {', '.join(methods)}")


def method_for(method: Decomposition, spec: LayerSpec) -> Decomposition:
    """What a method comes to on a geometry.

    On a pointwise layer (a Linear, or 1x1 without padding) the weight is a matrix, every method's best
    answer is the truncated SVD, and its further stages would only cost: there it is `SVD()`. Elsewhere it is
    `method` itself.
    """
    return SVD() if spec.is_pointwise else method
