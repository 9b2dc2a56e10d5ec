"""Balance the scales between neighbouring linear stages before their weights and activations are quantised.

Between two stages without an activation function in between, a diagonal and its inverse change nothing:
`W2 (W1 x) = (W2 D) (D^-1 W1 x)`. Quantised, the activation between them has one step for all its channels,
and the channels of a chain fall off like singular values: the small ones would be lost in the step of the
largest. With `a_i` the largest magnitude of channel i, the error behind the second stage is the step `max_i
a_i / d_i` times the norm of `W2 D`. It is least at `d_i = a_i`, when all channels fill the range alike. The
weights have a step for every output channel of their own: of the first stage that absorbs the diagonal whole,
of the second for the most part. (Nagel et al. 2019, arXiv 1906.04721, and Xiao et al. 2023, arXiv 2211.10438,
do the same across other layers.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class LinearPair:
    """Two stages of which the first feeds only the second, directly.

    Attributes:
        value: Name of the activation between them.
        before: Node of the first stage.
        after: Node of the second stage.
    """

    value: str
    before: Any
    after: Any

    @property
    def channel_axis(self) -> int:
        """The axis of the activation that holds the channels."""
        return 1 if self.before.op_type == "Conv" else -1


def linear_pairs(model: Any) -> tuple[LinearPair, ...]:
    """The pairs of an `onnx_ir.Model` between which a diagonal is free."""
    outputs = set(model.graph.outputs)
    pairs: list[LinearPair] = []
    for node in model.graph:
        if not _is_linear(node):
            continue
        value = node.outputs[0]
        if value in outputs or len(value.uses()) != 1:
            continue
        after, index = value.uses()[0]
        if index == 0 and _is_linear(after) and (node.op_type == "Conv") == (after.op_type == "Conv"):
            pairs.append(LinearPair(value.name, node, after))
    return tuple(pairs)


def balance(pairs: Sequence[LinearPair], largest: Mapping[str, NDArray[Any]]) -> None:
    """Rescale the weights of each pair in place; what the model computes stays the same.

    Args:
        pairs: From `linear_pairs`.
        largest: Largest magnitude of every channel of the activation of each pair, `[channels]`.
    """
    for pair in pairs:
        scale = np.asarray(largest[pair.value], np.float64).copy()
        live = scale > 0
        # Only the proportions matter; keep the overall size of both weights.
        scale[live] /= np.exp(np.log(scale[live]).mean())
        scale[~live] = 1.0
        for value in pair.before.inputs[1:3]:
            if value is not None:
                _store(value, _along_outputs(pair.before, value.const_value.numpy(), 1 / scale))
        weight = pair.after.inputs[1]
        _store(weight, _along_inputs(pair.after, weight.const_value.numpy(), scale))


def _is_linear(node: Any) -> bool:
    """Whether a node is a stage whose weights are constants that nothing else reads."""
    if node.op_type not in ("Conv", "Gemm", "MatMul") or node.domain not in ("", "ai.onnx"):
        return False
    weights = [value for value in node.inputs[1:] if value is not None]
    if not all(value.is_initializer() and len(value.uses()) == 1 for value in weights):
        return False
    return node.op_type != "MatMul" or len(weights[0].shape) == 2


def _inputs_come_first(node: Any) -> bool:
    """Whether the weight is stored `[inputs, outputs]`."""
    attribute = node.attributes.get("transB")
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and not (attribute and attribute.as_int()))


def _along_outputs(node: Any, array: NDArray[Any], scale: NDArray[Any]) -> NDArray[Any]:
    """A weight or bias with each output channel multiplied."""
    if array.ndim == 1 or _inputs_come_first(node):
        return np.asarray(array * scale)
    return np.asarray(array * scale.reshape(-1, *[1] * (array.ndim - 1)))


def _along_inputs(node: Any, weight: NDArray[Any], scale: NDArray[Any]) -> NDArray[Any]:
    """A weight with each input channel multiplied."""
    if _inputs_come_first(node):
        return np.asarray(weight * scale[:, None])
    attribute = node.attributes.get("group")
    groups = attribute.as_int() if attribute else 1
    grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return np.asarray(grouped * scale.reshape(groups, 1, -1, 1)).reshape(weight.shape)


def _store(value: Any, array: NDArray[Any]) -> None:
    import onnx_ir

    value.const_value = onnx_ir.tensor(array.astype(value.const_value.numpy().dtype), name=value.name)
