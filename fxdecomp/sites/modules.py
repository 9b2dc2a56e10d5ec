"""Reads call_module nodes: `nn.Linear`, `nn.Conv1d/2d/3d`, `nn.ConvTranspose1d/2d/3d`."""

from __future__ import annotations

from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from fxdecomp.layers import LayerSpec
from fxdecomp.reasons import Reason
from fxdecomp.sites.base import Reading, Refusal
from fxdecomp.sites.geometry import conv_geometry, linear_geometry

Convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
Layer = (nn.Linear, *Convolution)


def is_layer(module: nn.Module) -> bool:
    """Whether a module computes exactly what one of torch's own layers computes.

    A subclass or a module with a forward of its own is not a layer: nobody knows what it does.
    """
    kind = next((base for base in Layer if isinstance(module, base)), None)
    if kind is None:
        return False
    own = [type(module).forward is kind.forward, vars(module).keys().isdisjoint(("forward", "_conv_forward"))]
    if kind in Convolution:
        own.append(getattr(type(module), "_conv_forward", None) is getattr(kind, "_conv_forward", None))
    return all(own)


def read_module_call(gm: GraphModule, node: Node) -> Reading | Refusal | None:
    """What a call_module node says of its layer, None where it is no layer."""
    module = gm.get_submodule(str(node.target))
    if not is_layer(module):
        return None
    name, kind = str(node.target), type(module).__name__
    source = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(source, Node):
        return Refusal(name, kind, Reason.UNKNOWN_SHAPE, "the input is not a graph value")
    weight, bias = _materialised(module, "weight"), _materialised(module, "bias")
    obstacle = _obstacle(node, module, weight)
    if obstacle is not None:
        return Refusal(name, kind, *obstacle, _known_geometry(module, weight))
    assert weight is not None  # without one there is an obstacle
    named = list(module.named_parameters())
    weights = [parameter for key, parameter in named if "bias" not in key]
    biases = [parameter for key, parameter in named if "bias" in key]
    transposed = isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    return Reading(
        name=name,
        source=source,
        geometry=_geometry(module, weight),
        weight=swapped_channels(weight, _groups(module)) if transposed else weight,
        bias=bias,
        roots=frozenset(map(id, weights)),
        bias_roots=frozenset(map(id, biases)),
        key=("module", id(module)),
        trains=any(parameter.requires_grad for parameter in weights),
        bias_trains=any(parameter.requires_grad for parameter in biases),
    )


def _obstacle(node: Node, module: nn.Module, weight: Tensor | None) -> tuple[Reason, str] | None:
    """Why the layer that a node calls cannot be decomposed, None where it can."""
    if sum(value is not None for value in [*node.args, *node.kwargs.values()]) > 1:
        return Reason.OUTPUT_SIZE, "set its output_padding instead"
    if any(not isinstance(hook, WeightNorm | SpectralNorm) for hook in hooks_of(module)):
        return Reason.HOOKED, "remove them, or fold them into the weight"
    if not isinstance(weight, Tensor) or weight.ndim < 2:
        return Reason.UNSUPPORTED_TENSOR, "it has not been initialised"
    return (Reason.UNSUPPORTED_TENSOR, "it has no elements") if 0 in weight.shape else None


def swapped_channels(weight: Tensor, groups: int) -> Tensor:
    """A weight with the channel axes of each group exchanged; its own inverse.

    It leads from a transposed convolution's stored weight `[in, out // groups, *k]` to
    `[out, in // groups, *k]`, and back.
    """
    by_group = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    return by_group.transpose(1, 2).flatten(0, 1)


def _geometry(module: nn.Module, weight: Tensor) -> LayerSpec:
    """The layer's geometry, sizes as its weight has them: pruning leaves the module's attributes behind."""
    if isinstance(module, nn.Linear):
        return linear_geometry(weight.shape[1], weight.shape[0])
    assert isinstance(module, Convolution)
    first, second = weight.shape[:2]
    in_channels, out_channels = first, second * module.groups
    if not module.transposed:
        in_channels, out_channels = second * module.groups, first
    return conv_geometry(
        in_channels,
        out_channels,
        tuple(weight.shape[2:]),
        stride=module.stride,
        padding=module.padding,
        dilation=module.dilation,
        groups=module.groups,
        padding_mode=module.padding_mode,
        transposed=module.transposed,
        output_padding=module.output_padding,
    )


def _known_geometry(module: nn.Module, weight: Tensor | None) -> LayerSpec | None:
    """The geometry of a layer that may have no proper weight."""
    proper = isinstance(weight, Tensor) and weight.ndim > 1 and 0 not in weight.shape
    return _geometry(module, weight) if proper and weight is not None else None


def _groups(module: nn.Module) -> int:
    return int(module.groups) if isinstance(module, Convolution) else 1


def hooks_of(module: nn.Module) -> list[object]:
    """The hooks that are called when the module runs or its gradients are computed."""
    return [
        *module._forward_pre_hooks.values(),
        *module._forward_hooks.values(),
        *module._backward_pre_hooks.values(),
        *module._backward_hooks.values(),
    ]


def _materialised(module: nn.Module, name: str) -> Tensor | None:
    """The tensor that the module will use: parametrisations and weight-norm hooks are evaluated."""
    if parametrize.is_parametrized(module, name):
        return getattr(module, name).detach()  # type: ignore[no-any-return]
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and hook.name == name:
            return hook.compute_weight(module).detach()  # type: ignore[no-any-return]
        if isinstance(hook, SpectralNorm) and hook.name == name:
            return hook.compute_weight(module, do_power_iteration=False).detach()
    return getattr(module, name, None)
