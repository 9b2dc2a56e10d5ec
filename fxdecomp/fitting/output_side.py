"""The output side of a layer's error: some directions of its output matter more to the network than others.

    minimise  E (y - y')^T S^(1/2) (y - y'),    S = E[g g^T],  g = d (v^T f) / d y,  v = +-1

with f the network's outputs. What is minimised is the error of `M y`, `M = S^(1/4)`: the layer is `M W`, and
the last stage of its chain is multiplied by `M^-1`. The whole of S would trust too much in a gradient, which
says what an error does alone and while it is small (`benchmarks/output_side.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from fxdecomp.chains import Chain
from fxdecomp.fitting.refitting import JointMoments, refit

_FLOOR = 0.03
"""Least weight of a direction, as a share of the mean eigenvalue of S: few inputs do not show all of them."""


@dataclass(frozen=True, slots=True, eq=False)
class OutputSide:
    """How the output of a layer is weighed.

    Attributes:
        root: M, symmetric, in float64.
        inverse: Its inverse.
    """

    root: Float[Tensor, "t t"]
    inverse: Float[Tensor, "t t"]

    @staticmethod
    def of(gradients: Float[Tensor, "n t"], power: float = 0.5) -> OutputSide:
        """The weights of a power of the gradients' second moment, which must not vanish.

        Args:
            gradients: The moment, or fewer gradients than they are long; see `output_gradients`.
            power: The power.
        """
        count, size = gradients.shape
        if count == size:
            values, vectors = torch.linalg.eigh(gradients)
        else:
            _, roots, across = torch.linalg.svd(gradients, full_matrices=False)
            values, vectors = roots.square(), across.T
        rest = _FLOOR ** (power / 2)  # of directions that no gradient has
        scales = (values * (size / values.sum())).clamp_min(_FLOOR) ** (power / 2)
        root = (vectors * (scales - rest)) @ vectors.T
        inverse = (vectors * (1 / scales - 1 / rest)) @ vectors.T
        root.diagonal().add_(rest)
        inverse.diagonal().add_(1 / rest)
        return OutputSide(root, inverse)

    def refit(
        self, fit: JointMoments, held: JointMoments, chain: Chain, layer: Float[Tensor, "out in *kernel"]
    ) -> Chain:
        """`refit`, the outputs weighed: in what is fitted, and in what is judged."""
        given = behind(self.root, chain)
        new = refit(fit.weighed(self.root), held.weighed(self.root), given, times(self.root, layer))
        return chain if new is given else behind(self.inverse, new)


def behind(matrix: Tensor, chain: Chain) -> Chain:
    """A chain with its outputs, and its bias if there is one, multiplied by a matrix."""
    bias = None if chain.bias is None else times(matrix, chain.bias)
    return replace(chain, weights=(*chain.weights[:-1], times(matrix, chain.weights[-1])), bias=bias)


def times(matrix: Tensor, weight: Tensor) -> Tensor:
    """A weight or bias `[t, ...]` with its outputs multiplied by a matrix."""
    return (matrix @ weight.reshape(len(weight), -1).double()).reshape(weight.shape).to(weight.dtype)
