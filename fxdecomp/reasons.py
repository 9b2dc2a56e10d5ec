"""Why something is left alone: the kind of reason, and its particulars."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a layer was left alone. The value is the sentence that users read.

    Example:
        >>> import fxdecomp
        >>> print(fxdecomp.Reason.DEPTHWISE)
        a depthwise layer has no channels to decompose
    """

    NOT_TRANSFORMED = "no policy has been applied to this graph"
    NOT_SELECTED = "the policy does not select this layer"
    NO_SAVING = "the chain would not take fewer multiply-accumulates"
    UNSUITED = "the method does not suit this geometry"
    DEPTHWISE = "a depthwise layer has no channels to decompose"
    RANK_ZERO = "the rank rule finds no signal above the noise"
    ZERO_WEIGHT = "the weight is all zero"
    NOT_FINITE = "the weight holds NaN or infinity"
    TIED_WEIGHT = "the weight is also used by another layer"
    COMPUTED_WEIGHT = "the weight is computed in the graph, not a constant"
    CONSTANT_INPUT = "the layer's input is a constant: what it gives can be computed once"
    UNKNOWN_SHAPE = "the size of the layer's input is not known"
    RECURRENT = "of recurrent layers, only LSTM and GRU that are called as modules are decomposed"
    EMBEDDING = "a table that is looked up multiplies nothing: it is not decomposed"
    ATTENTION = "attention with packed weights inside a module is not decomposed"
    ELEMENTWISE = "its weights scale, shift or fill: there is no matrix to decompose"
    OTHER_LAYER = "no method knows this kind of layer"
    UNUSED = "the graph does not use it"
    INSIDE_LEAF = "the layer is inside a module that the graph does not look into"
    IN_BRANCH = "the layer stands in a branch of the file, which is written as it is"
    HOOKED = "the module carries hooks that a chain would lose"
    OUTPUT_SIZE = "the layer is told its output's size at the call, which a chain's layers cannot be"
    UNSUPPORTED_TENSOR = "the weight is not an ordinary dense floating-point tensor"
    BUDGET = "the budget is met without this layer"
    HEAD = "its output is the network's, and no data tells what is lost there"
    FEW_OUTPUTS = "each of its few outputs matters, and no data tells what is lost there"
    OUT_OF_PROPORTION = "what is lost at the outputs is out of proportion to what it saves"
    NOT_KEPT = "no smaller network that was judged keeps the metric"
    WIDTH = "its outputs cannot be narrowed"
    NOT_FASTER = "no choice of chains was measured to be faster than the dense network"


NO_LAYER = frozenset(
    {
        Reason.RECURRENT,
        Reason.EMBEDDING,
        Reason.ATTENTION,
        Reason.ELEMENTWISE,
        Reason.OTHER_LAYER,
        Reason.UNUSED,
    }
)
"""The reasons of what holds weights and is neither Conv nor Linear."""

UNJUDGED = frozenset({Reason.HEAD, Reason.FEW_OUTPUTS})
"""The reasons of layers that are left alone for want of data, unless a rule names them."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why something is left alone: a layer by a method, a node by the survey.

    Attributes:
        reason: The kind of reason.
        detail: The particulars, with numbers.
    """

    reason: Reason
    detail: str = ""
