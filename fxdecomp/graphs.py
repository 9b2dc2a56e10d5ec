"""Copies and edits of GraphModules that passes share."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.graph_module import _get_attr

from fxdecomp.layers import LayerSpec, Stage
from fxdecomp.records import attach_record, record_of
from fxdecomp.sites import Call, Site
from fxdecomp.sites.geometry import same_padding
from fxdecomp.sites.modules import swapped_channels

_CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
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
    memo = {id(tensor): tensor for tensor in derived_tensors(gm)} | memo
    with warnings.catch_warnings():
        # Raised inside torch when it copies an exported graph, whatever the model.
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec", category=FutureWarning)
        result: GraphModule = copy.deepcopy(gm, memo)
    record = record_of(gm)
    if record is not None:
        attach_record(result, record)  # deepcopy drops the attribute that pickling needs
    return result


def stage_module(stage: Stage, *, requires_grad: bool = True, training: bool = False) -> nn.Module:
    """The torch layer of a stage, with the stage's tensors as its parameters."""
    spec = stage.spec
    has_bias = stage.bias is not None
    module: nn.Module
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
    weight = stored_layout(stage.weight, spec)
    module.weight = nn.Parameter(weight, requires_grad=requires_grad)
    if stage.bias is not None:
        module.bias = nn.Parameter(stage.bias.detach().clone(), requires_grad=requires_grad)
    return module.train(training)


def stored_layout(weight: Tensor, spec: LayerSpec) -> Tensor:
    """A weight `[out, in // groups, *kernel]` as torch stores it: inputs first, if transposed.

    Its strides are the plain ones along axes of length 1 too: others make torch give the layer's output
    channels last, which a later `view` cannot bear.
    """
    stored = swapped_channels(weight, spec.groups) if spec.transposed else weight
    return stored.clone(memory_format=torch.contiguous_format)


def _torch_padding(spec: LayerSpec) -> tuple[int, ...] | str:
    if all(before == after for before, after in spec.padding):
        return tuple(before for before, _ in spec.padding)
    if spec.padding != same_padding(spec.kernel, spec.dilation) or any(s != 1 for s in spec.stride):
        raise ValueError(f"torch has no convolution with padding {spec.padding}; only 'same' may be uneven")
    return "same"


def replace_site(gm: GraphModule, site: Site, chains: Sequence[Sequence[Stage]]) -> str:
    """Replace every call of a site, in place, by nodes that call its stages.

    The stages' modules sit under the site's name (`features.3.core`); a stage without a name takes the site's
    own place. Constants that nothing uses any more are left to `remove_unused`, once for all sites.

    Args:
        gm: The graph module that the site was surveyed in; the caller recompiles it.
        site: The layer.
        chains: The stages at each call, in the order of `site.calls`: the same weights, on each call's sizes.

    Returns:
        The name under which the stages sit: the site's, unless something else stands there.
    """
    old = gm.get_submodule(site.name) if site.calls[0].node.op == "call_module" else None
    trainable = old is None or any(p.requires_grad for p in old.parameters())
    training = gm.training if old is None else old.training
    prefix = _free_prefix(gm, site)
    modules = {
        stage.name: stage_module(stage, requires_grad=trainable, training=training) for stage in chains[0]
    }
    for call, stages in zip(site.calls, chains, strict=True):
        _insert(gm, call, [(_join(prefix, stage.name), stage.spec) for stage in stages])
    for name in {str(call.node.target) for call in site.calls if call.node.op == "call_module"}:
        gm.delete_submodule(name)
    for name, module in modules.items():
        gm.add_submodule(_join(prefix, name), module)
    return prefix


def _insert(gm: GraphModule, call: Call, stages: list[tuple[str, LayerSpec]]) -> None:
    value = call.source
    with gm.graph.inserting_before(call.node):
        for target, spec in stages:
            node = gm.graph.create_node("call_module", target, (value,), name=target.replace(".", "_"))
            node.meta = _meta(call, spec)
            value = node
    value.meta = dict(call.node.meta)
    call.node.replace_all_uses_with(value)
    gm.graph.erase_node(call.node)


def _meta(call: Call, spec: LayerSpec) -> dict[str, object]:
    keys = ("stack_trace", "nn_module_stack")
    meta = {key: value for key, value in call.node.meta.items() if key in keys}
    recorded = call.node.meta.get("tensor_meta")
    if recorded is None:
        return meta
    shape = list(recorded.shape)
    axis = len(shape) - 1 - spec.ndim
    shape[axis:] = [spec.out_channels, *spec.output_size]
    return meta | {"tensor_meta": recorded._replace(shape=torch.Size(shape), stride=())}


def remove_unused(gm: GraphModule) -> None:
    """Erase constant nodes without users, and the stored tensors that only they used."""
    erased = set()
    constants = _constants(gm)
    for node in reversed(gm.graph.nodes):
        if node.op == "get_attr" and not node.users:
            erased.add(str(node.target))
            gm.graph.erase_node(node)
        elif node.op in ("call_function", "call_method") and not node.users and node in constants:
            gm.graph.erase_node(node)
    modules = {str(node.target) for node in gm.graph.nodes if node.op == "call_module"}
    kept = {str(node.target) for node in gm.graph.nodes if node.op == "get_attr"}
    for path in erased - kept:
        parts = path.split(".")
        owners = [".".join(parts[:length]) for length in range(1, len(parts))]
        if modules.isdisjoint(owners):
            delattr(gm.get_submodule(owners[-1] if owners else ""), parts[-1])


def _constants(gm: GraphModule) -> set[Node]:
    """The nodes that nothing but stored tensors goes into; those without users can be erased without loss."""
    found: set[Node] = set()
    for node in gm.graph.nodes:
        computed = bool(node.all_input_nodes) and found.issuperset(node.all_input_nodes)
        if node.op == "get_attr" or (computed and not node.is_impure()):
            found.add(node)
    return found


def _free_prefix(gm: GraphModule, site: Site) -> str:
    """The site's name, or a variant of it where something else already stands under that name."""
    prefix = site.name
    while site.calls[0].node.op != "call_module" and not _is_free(gm, prefix):
        prefix += "_chain"
    return prefix


def _is_free(gm: GraphModule, path: str) -> bool:
    """Whether a path leads nowhere, or to a module that only holds names, as `torch.export` leaves behind."""
    value: object = gm
    for part in path.split("."):
        value = getattr(value, part, None)
    return value is None or type(value) is nn.Module


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if name else prefix
