"""The methods: one file each, all in the registry tuple `METHODS`."""

from __future__ import annotations

import difflib

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


def method_named(name: str) -> Decomposition:
    """The method of a name.

    Raises:
        PolicyError: There is no such method; the message offers the nearest names.
    """
    names = [method.name for method in METHODS]
    if name in names:
        return METHODS[names.index(name)]
    near = difflib.get_close_matches(name, names, cutoff=0.5)
    raise PolicyError(f"there is no method {name!r}; use {' or '.join(near) or 'one of ' + ', '.join(names)}")


def method_for(method: Decomposition, spec: LayerSpec) -> Decomposition:
    """What a method comes to on a geometry.

    On a pointwise layer (a Linear, or 1x1 without padding) the weight is a matrix, every method's best
    answer is the truncated SVD, and its further stages would only cost: there it is `SVD()`. Elsewhere it is
    `method` itself.
    """
    return SVD() if spec.is_pointwise else method
