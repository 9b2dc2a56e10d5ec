"""Copies of GraphModules, and the torch layers of stages."""

from __future__ import annotations

import copy
import warnings
from types import MethodType
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import PythonKeyTracer
from torch.fx.graph_module import _get_attr

from fxdecomp.chains import Stage
from fxdecomp.graphs.records import attach_record, examples_of, record_of
from fxdecomp.layers import LayerSpec
from fxdecomp.sites.geometry import same_padding
from fxdecomp.sites.modules import swapped_channels
from fxdecomp.sites.recurrent import with_inputs

_CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_CONV_TRANSPOSE: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def stored_tensors(gm: GraphModule) -> list[Tensor]:
    """Every tensor that a graph module stores: parameters, buffers and plain attributes used by the graph."""
    values = [_get_attr(gm, str(node.target)) for node in gm.graph.nodes if node.op == "get_attr"]
    return [*gm.parameters(), *gm.buffers(), *(value for value in values if isinstance(value, Tensor))]


def derived_tensors(module: nn.Module) -> list[Tensor]:
    """Plain attributes that hooks compute anew from parameters (`weight_norm`); they cannot be copied."""
    values = [value for part in module.modules() for value in vars(part).values()]
    return [value for value in values if isinstance(value, Tensor) and not value.is_leaf]


def copy_sharing_tensors(gm: GraphModule) -> GraphModule:
    """A copy with a graph and modules of its own, and the tensors of the original. Cost: no tensor memory."""
    return _copy(gm, {id(tensor): tensor for tensor in stored_tensors(gm)})


def copy_owning_tensors(gm: GraphModule, original: GraphModule) -> GraphModule:
    """A copy of `gm` that shares no tensor with `original`, so that training one leaves the other alone.

    Tensors that are not shared, such as new stages, are moved over rather than copied.
    """
    shared = {id(tensor) for tensor in stored_tensors(original)}
    memo: dict[int, object] = {}
    for tensor in stored_tensors(gm):
        if id(tensor) not in shared:
            memo[id(tensor)] = tensor
        elif type(tensor) not in (Tensor, nn.Parameter, nn.Buffer) or tensor.layout is not torch.strided:
            memo[id(tensor)] = _clone(tensor)
    return _copy(gm, memo)


def _clone(tensor: Tensor) -> Tensor:
    """A copy of a tensor of any subclass or layout, many of which `copy.deepcopy` refuses."""
    copied = tensor.detach().clone()
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(copied, requires_grad=tensor.requires_grad) if is_parameter else copied


def _copy(gm: GraphModule, memo: dict[int, object]) -> GraphModule:
    examples = [leaf for leaf in pytree.tree_leaves(examples_of(gm)) if isinstance(leaf, Tensor)]
    memo = {id(tensor): tensor for tensor in (*derived_tensors(gm), *examples)} | memo
    with warnings.catch_warnings():
        # Raised inside torch when it copies an exported graph, whatever the model.
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec", category=FutureWarning)
        result: GraphModule = copy.deepcopy(gm, memo)
    _restore_attributes(result, gm)
    if issubclass(result.graph._tracer_cls or fx.Tracer, PythonKeyTracer):
        # Unpickling traces the code again, for which the tracer of torch.export and make_fx does not serve.
        result._tracer_cls = result.graph._tracer_cls = None
    record = record_of(gm)
    if record is not None:
        attach_record(result, record)  # deepcopy drops the attribute that pickling needs
    return result


def hook_tables(module: nn.Module) -> list[dict[int, Any]]:
    """The tables of a module's forward hooks."""
    return [
        module._forward_pre_hooks,
        module._forward_pre_hooks_with_kwargs,
        module._forward_hooks,
        module._forward_hooks_with_kwargs,
        module._forward_hooks_always_called,
    ]


def _restore_attributes(copied: GraphModule, gm: GraphModule) -> None:
    """Add what the deepcopy of a GraphModule leaves out: its hooks, and attributes beside the graph."""
    for own, hooks in zip(hook_tables(copied), hook_tables(gm), strict=True):
        own.update(hooks)
    for name, value in vars(gm).items():
        if name not in vars(copied) and not isinstance(value, MethodType):
            vars(copied)[name] = value


def stage_module(
    stage: Stage,
    *,
    like: Tensor,
    trains: bool,
    bias_trains: bool,
    training: bool,
    before: nn.Module | None = None,
) -> nn.Module:
    """The torch layer of a stage, with the stage's tensors as its parameters, laid out as `like` is.

    Args:
        stage: The stage.
        like: The weight of the layer that is replaced.
        trains: Whether gradients are wanted for the stage's weight.
        bias_trains: Whether they are for its bias.
        training: Whether the module is in training mode.
        before: The module of the layer, of which a recurrent stage keeps all but the input product.
    """
    spec = stage.spec
    has_bias = stage.bias is not None
    module: nn.Module
    if spec.recurrence is not None:
        assert isinstance(before, nn.RNNBase)  # only modules are read as recurrent layers
        return with_inputs(before, stage.weight, stage.bias, trains=trains, bias_trains=bias_trains)
    if spec.is_linear:
        module = nn.Linear(spec.in_channels, spec.out_channels, bias=has_bias, device="meta")
    else:
        kind = (_CONV_TRANSPOSE if spec.transposed else _CONV)[spec.ndim]
        options: dict[str, Any] = {
            "stride": spec.stride,
            "padding": _torch_padding(spec),
            "dilation": spec.dilation,
            "groups": spec.groups,
            "bias": has_bias,
            "padding_mode": spec.padding_mode,
            "device": "meta",
        }
        if spec.transposed:
            options["output_padding"] = spec.output_padding
        module = kind(spec.in_channels, spec.out_channels, spec.kernel, **options)
    weight = stored_layout(stage.weight, spec, like)
    module.weight = nn.Parameter(weight, requires_grad=trains)
    if stage.bias is not None:
        module.bias = nn.Parameter(stage.bias.detach().clone(), requires_grad=bias_trains)
    return module.train(training)


def stored_layout(weight: Tensor, spec: LayerSpec, like: Tensor) -> Tensor:
    """A weight `[out, in // groups, *kernel]` as torch stores it: inputs first, if transposed.

    Its channels come last in memory where those of `like` do, a weight of the layer that is replaced: torch
    lays out the layer's output by it, which a later `view` relies on. Otherwise its strides are the plain
    ones, along axes of length 1 too.
    """
    stored = swapped_channels(weight, spec.groups) if spec.transposed else weight
    plain = stored.clone(memory_format=torch.contiguous_format)
    channels_last = like.ndim > 3 and 1 in like.stride()[:2] and like.stride(-1) > 1
    return plain.to(memory_format=_CHANNELS_LAST[stored.ndim]) if channels_last else plain


def _torch_padding(spec: LayerSpec) -> tuple[int, ...] | str:
    if all(before == after for before, after in spec.padding):
        return tuple(before for before, _ in spec.padding)
    if spec.padding != same_padding(spec.kernel, spec.dilation) or any(s != 1 for s in spec.stride):
        raise ValueError(f"torch has no convolution with padding {spec.padding}; only 'same' may be uneven")
    return "same"
