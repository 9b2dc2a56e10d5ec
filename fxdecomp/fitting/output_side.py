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
class Scaling:
    """The symmetric matrix `V diag(s) V^T + r (I - V V^T)`, which is never multiplied out.

    Attributes:
        vectors: V, orthonormal, in float64.
        scales: s.
        rest: r.
    """

    vectors: Float[Tensor, "t n"]
    scales: Float[Tensor, " n"]
    rest: float

    @property
    def inverse(self) -> Scaling:
        """The inverse matrix."""
        return Scaling(self.vectors, 1 / self.scales, 1 / self.rest)

    def __call__(self, x: Float[Tensor, "t ..."]) -> Float[Tensor, "t ..."]:
        """Its product with x, in the type of x. Cost: `2 t n m`."""
        wide = x.reshape(len(x), -1).double()
        seen = (self.scales - self.rest)[:, None] * (self.vectors.T @ wide)
        return (self.rest * wide + self.vectors @ seen).reshape(x.shape).to(x.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class OutputSide:
    """How the output of a layer is weighed.

    Attributes:
        root: M.
    """

    root: Scaling

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
        shares = (values * (size / values.sum())).clamp_min(_FLOOR)
        return OutputSide(Scaling(vectors, shares ** (power / 2), _FLOOR ** (power / 2)))

    def refit(
        self, fit: JointMoments, held: JointMoments, chain: Chain, layer: Float[Tensor, "out in *kernel"]
    ) -> Chain:
        """`refit`, the outputs weighed: in what is fitted, and in what is judged."""
        given = behind(self.root, chain)
        new = refit(fit.weighed(self.root), held.weighed(self.root), given, self.root(layer))
        return chain if new is given else behind(self.root.inverse, new)


def behind(scaling: Scaling, chain: Chain) -> Chain:
    """A chain with its outputs, and its bias if there is one, multiplied by a matrix."""
    bias = None if chain.bias is None else scaling(chain.bias)
    return replace(chain, weights=(*chain.weights[:-1], scaling(chain.weights[-1])), bias=bias)
