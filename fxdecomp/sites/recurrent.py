"""Reads call_module nodes of `nn.LSTM` and `nn.GRU`: the product of their first level with their input.

    gates(t) = W_ih x(t) + b_ih + W_hh h(t - 1) + b_hh        W_ih: all gates of both directions, one x

So `W_ih` is the weight of a Linear `in -> directions * gates * hidden`, whose chain leaves the layer as it is
but for the size of its input: a Linear `in -> R`, and the same layer of R inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.utils import parametrize

from fxdecomp.layers import LayerSpec, Recurrence
from fxdecomp.reasons import Reason
from fxdecomp.sites.base import Reading, Refusal, Site, shape_of
from fxdecomp.sites.modules import hooks_of

_KINDS = (nn.LSTM, nn.GRU)
IN_BRANCH = "_fxdecomp_in_branch"
"""An attribute of layers that an ONNX file has in a branch only."""


def recurrent_geometry(module: nn.RNNBase) -> LayerSpec:
    """A recurrent layer, without its input size."""
    recurrence = Recurrence(
        module.mode.partition("_")[0],
        module.hidden_size,
        module.proj_size,
        directions=2 if module.bidirectional else 1,
        levels=module.num_layers,
        has_bias=module.bias,
        batch_first=module.batch_first,
    )
    return LayerSpec(module.input_size, recurrence.products, recurrence=recurrence)


def read_recurrent_call(gm: GraphModule, node: Node) -> Reading | Refusal | None:
    """What a call_module node says of its LSTM or GRU, None where it is none of torch's own."""
    module = gm.get_submodule(str(node.target))
    own = parametrize.type_before_parametrizations(module)
    if own not in _KINDS or "forward" in vars(module):
        return None
    assert isinstance(module, nn.RNNBase)  # narrows the type
    name, kind, geometry = str(node.target), own.__name__, recurrent_geometry(module)
    source = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(source, Node):
        return Refusal(name, kind, Reason.UNKNOWN_SHAPE, "the input is not a graph value")
    obstacle = (Reason.IN_BRANCH, "") if IN_BRANCH in vars(module) else _obstacle(module, source)
    if obstacle is not None:
        return Refusal(name, kind, *obstacle, geometry)
    weights, biases = input_parameters(module, "weight"), input_parameters(module, "bias")
    inputs = {id(parameter) for parameter in (*weights, *biases)}
    return Reading(
        name=name,
        source=source,
        geometry=geometry,
        weight=torch.cat([weight.detach() for weight in weights]),
        bias=torch.cat([bias.detach() for bias in biases]) if biases else None,
        roots=frozenset(map(id, weights)),
        bias_roots=frozenset(map(id, biases)),
        key=("module", id(module)),
        trains=any(weight.requires_grad for weight in weights),
        bias_trains=any(bias.requires_grad for bias in biases),
        besides=tuple(parameter for parameter in module.parameters() if id(parameter) not in inputs),
    )


def _obstacle(module: nn.RNNBase, source: Node) -> tuple[Reason, str] | None:
    """Why the input product of a layer cannot be decomposed, None where it can."""
    if parametrize.is_parametrized(module):
        return Reason.UNSUPPORTED_TENSOR, "it is parametrised; use torch's remove_parametrizations before"
    if hooks_of(module):
        return Reason.HOOKED, "remove them, or fold them into the weight"
    weights = input_parameters(module, "weight")
    if len({id(weight) for weight in weights}) < len(weights):
        return Reason.TIED_WEIGHT, "both directions share it"
    if any(weight.device.type == "meta" for weight in weights):
        return (
            Reason.UNSUPPORTED_TENSOR,
            "it is on the meta device; load the weights first",
        )
    if shape_of(source) is None:
        return Reason.UNKNOWN_SHAPE, "sequences that are packed have none: a chain takes tensors, padded"
    return None


def input_parameters(module: nn.RNNBase, kind: str) -> list[nn.Parameter]:
    """The parameters of the input product, `weight` or `bias`, one a direction; none without biases."""
    found = (getattr(module, f"{kind}_ih_l0{way}", None) for way in ("", "_reverse"))
    return [parameter for parameter in found if isinstance(parameter, nn.Parameter)]


def input_product(site: Site, x: Tensor) -> Tensor:
    """What no node gives by itself: `W_ih x + b_ih` of rows `[n, inputs]`, in at least float32."""
    wide = torch.promote_types(site.weight.dtype, torch.float32)
    y = x.to(wide) @ site.weight.to(wide).T
    return y if site.bias is None else y + site.bias


def with_inputs(
    module: nn.RNNBase, weight: Tensor, bias: Tensor | None, *, trains: bool, bias_trains: bool
) -> nn.RNNBase:
    """A recurrent layer with another input product, which shares all other parameters with this one.

    Args:
        module: The layer.
        weight: `[directions * gates * hidden, inputs]`.
        bias: `[directions * gates * hidden]`, or None for a layer without any bias.
        trains: Whether gradients are wanted for the new weights.
        bias_trains: Whether they are for the new biases.
    """
    new = _empty(module, weight.shape[1], module.hidden_size, has_bias=bias is not None)
    ways = 2 if module.bidirectional else 1
    shared = dict(module.named_parameters())
    for name, empty in list(new.named_parameters()):
        if name.startswith("weight_ih_l0"):
            part = weight.chunk(ways)[name.endswith("_reverse")].clone()
            parameter = nn.Parameter(part, requires_grad=trains)
        elif name.startswith("bias_ih_l0") and bias is not None:
            part = bias.detach().chunk(ways)[name.endswith("_reverse")].clone()
            parameter = nn.Parameter(part, requires_grad=bias_trains)
        elif name in shared:
            parameter = shared[name]
        else:
            parameter = nn.Parameter(weight.new_zeros(empty.shape), requires_grad=bias_trains)
        setattr(new, name, parameter)
    return new.train(module.training)


def with_states(
    module: nn.RNNBase,
    kept: Sequence[Tensor],
    weights: Sequence[Tensor],
    shifts: Sequence[Tensor] | None,
) -> nn.RNNBase:
    """A recurrent layer of one level with some of its states, in parameters of its own.

    Args:
        module: The layer.
        kept: The states of each direction that stay.
        weights: `[gates * kept, kept]`, what they make of each other, one a direction.
        shifts: `[gates * kept]`, what the biases beside these gain; None for nothing.
    """
    has_bias = module.bias or shifts is not None
    new = _empty(module, module.input_size, len(kept[0]), has_bias=has_bias)
    before = dict(module.named_parameters())
    for name, empty in list(new.named_parameters()):
        way = int(name.endswith("_reverse"))
        old = before.get(name)
        value, trains = before["weight_ih_l0"].new_zeros(empty.shape), before["weight_ih_l0"].requires_grad
        if old is not None:
            gates = torch.split(old.detach(), module.hidden_size)
            rows = torch.cat([gate[kept[way].to(old.device)] for gate in gates])
            value, trains = rows, old.requires_grad
        if name.startswith("weight_hh"):
            value = weights[way].to(value)
        elif name.startswith("bias_hh") and shifts is not None:
            value = (value.double() + shifts[way].to(value.device)).to(value.dtype)
        setattr(new, name, nn.Parameter(value, requires_grad=trains))
    return new.train(module.training)


def state_weights(module: nn.RNNBase) -> list[Tensor]:
    """`W_hh` of the first level, `[gates * hidden, hidden]`, one a direction."""
    names = ("weight_hh_l0", "weight_hh_l0_reverse")[: 2 if module.bidirectional else 1]
    return [getattr(module, name).detach() for name in names]


def _empty(module: nn.RNNBase, inputs: int, hidden: int, *, has_bias: bool) -> nn.RNNBase:
    """A layer of other sizes, its parameters without values."""
    options: dict[str, Any] = {
        "num_layers": module.num_layers,
        "bias": has_bias,
        "batch_first": module.batch_first,
        "dropout": module.dropout,
        "bidirectional": module.bidirectional,
        "device": "meta",
    }
    if isinstance(module, nn.LSTM):
        options["proj_size"] = module.proj_size
    kind: Any = type(module)
    new: nn.RNNBase = kind(inputs, hidden, **options)
    return new
