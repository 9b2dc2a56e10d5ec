"""What holds weights and is neither Conv nor Linear: recurrent layers, embeddings, norms, single parameters.

They are never decomposed, but they are part of what a network costs. Multiply-accumulates are those of
products with weights: of recurrent layers as `layers.Recurrence` counts them, of attention with packed
weights `E E` a position of query, key and value. Embeddings, norms and element-wise weights take none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.graph_module import _get_attr

from fxdecomp.outcomes import Skipped
from fxdecomp.reasons import Reason
from fxdecomp.sites.base import shape_of
from fxdecomp.sites.ledger import Ledger
from fxdecomp.sites.modules import Layer
from fxdecomp.sites.products import product_macs
from fxdecomp.sites.recurrent import recurrent_geometry

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase, nn.GroupNorm)
_RECURRENT = re.compile(r"^_?(thnn_)?(fused_)?(lstm|gru|rnn_tanh|rnn_relu)(_cell)?$")
_LOOKUP = re.compile(r"embedding|^(index_select|gather|take|index)$")
_PRODUCT = re.compile(r"^(matmul|mm|bmm|addmm|baddbmm|einsum|bilinear|linear|mv|dot)$")
_WEIGHT_NAME = re.compile(r"^(weight|bias|in_proj)(_\w+)?$")


def input_free(gm: GraphModule) -> frozenset[Node]:
    """The nodes whose values depend on no input of the graph; chance and in-place writes may change them."""
    found: set[Node] = set()
    for node in gm.graph.nodes:
        computed = node.op in ("call_function", "call_method") and found.issuperset(node.all_input_nodes)
        if node.op == "get_attr" or computed:
            found.add(node)
    return frozenset(found)


def holders(
    gm: GraphModule,
    free: AbstractSet[Node],
    ledger: Ledger,
    layers: AbstractSet[Node],
    taken: AbstractSet[str],
) -> tuple[Skipped, ...]:
    """Everything of a graph that holds weights, apart from its Conv and Linear layers.

    Args:
        gm: The graph.
        free: Its nodes that depend on no input.
        ledger: Has charged the layers already.
        layers: The nodes that apply them.
        taken: The layers' names.
    """
    rows: dict[str, Skipped] = {}
    for node in gm.graph.nodes:
        if node in layers:
            ledger.see(tensor for _, tensor in stored_tensors_of(gm, node, free))
        elif node in free:
            continue
        elif node.op == "call_module":
            _add(rows, _of_module(gm, node, ledger, seen=rows.keys() | taken))
        else:
            _add(rows, _of_function(gm, node, free, ledger, taken))
    names = {id(tensor): name for name, tensor in gm.named_parameters()}
    for tensor in ledger.unseen(gm.parameters()):
        row = Skipped(names[id(tensor)], _tensor_words(tensor), Reason.UNUSED, "", tensor.numel())
        _add(rows, [row])
    return tuple(rows.values())


def _add(rows: dict[str, Skipped], found: Iterable[Skipped]) -> None:
    """Add rows; what is applied at several places has its cost at all of them."""
    for row in found:
        earlier = rows.get(row.site)
        rows[row.site] = (
            row
            if earlier is None
            else replace(earlier, params=earlier.params + row.params, macs=earlier.macs + row.macs)
        )


def stored_tensors_of(gm: GraphModule, node: Node, free: AbstractSet[Node]) -> Iterator[tuple[str, Tensor]]:
    """The stored tensors that a node takes, with their qualified names."""
    if node.op == "call_module":
        yield from gm.get_submodule(str(node.target)).named_parameters(prefix=str(node.target))
    waiting = [source for source in node.all_input_nodes if source in free]
    seen = set(waiting)
    while waiting:
        source = waiting.pop(0)
        if source.op == "get_attr":
            value = _get_attr(gm, str(source.target))
            if isinstance(value, Tensor):
                yield str(source.target), value
        new = [each for each in source.all_input_nodes if each not in seen]
        seen.update(new)
        waiting += new


def _of_module(gm: GraphModule, node: Node, ledger: Ledger, seen: AbstractSet[str]) -> Iterator[Skipped]:
    target = str(node.target)
    leaf = gm.get_submodule(target)
    inside = [name for name, part in leaf.named_modules(prefix=target) if isinstance(part, Layer)]
    for name, part in leaf.named_modules(prefix=target):
        own = list(part.parameters(recurse=False))
        if not own or any(name == layer or name.startswith(f"{layer}.") for layer in inside):
            continue
        params = ledger.take_whole(own)
        reason, detail = _reason_of(part, own), "" if name == target else f"inside {target}"
        if not params and name not in seen:
            detail = "its weights are counted with another layer"
        macs = _module_macs(part, node) if name == target else 0
        yield Skipped(name, _module_words(part), reason, detail, params, macs)


def _reason_of(module: nn.Module, own: list[nn.Parameter]) -> Reason:
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return Reason.RECURRENT
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return Reason.EMBEDDING
    if isinstance(module, nn.MultiheadAttention):
        return Reason.ATTENTION
    vectors = all(parameter.ndim < 2 for parameter in own)
    return Reason.ELEMENTWISE if vectors or isinstance(module, _NORMS) else Reason.OTHER_LAYER


def _module_words(module: nn.Module) -> str:
    name = type(module).__name__
    if isinstance(module, nn.RNNBase):
        return str(recurrent_geometry(module))
    if isinstance(module, nn.RNNCellBase):
        return f"{name} {module.input_size}->{module.hidden_size}"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return f"{name} {module.num_embeddings}x{module.embedding_dim}"
    return f"{name} {module.embed_dim}" if isinstance(module, nn.MultiheadAttention) else name


def _module_macs(module: nn.Module, node: Node) -> int:
    """Multiply-accumulates of one call, 0 where they are not known or there are none."""
    sizes = [math.prod(shape) if (shape := shape_of(each)) else 0 for each in _arguments(node)]
    if not sizes:
        return 0
    if isinstance(module, nn.RNNBase):
        return recurrent_geometry(module).macs * (sizes[0] // module.input_size)
    if isinstance(module, nn.RNNCellBase):
        steps = sizes[0] // int(module.input_size)
        return int(module.weight_ih.shape[0] * (module.input_size + module.hidden_size)) * steps
    if isinstance(module, nn.Bilinear):
        return int(module.weight.numel() * (sizes[0] // module.in1_features))
    if isinstance(module, nn.MultiheadAttention) and len(sizes) >= 3:
        return int(module.embed_dim) * sum(sizes[:3])
    return 0


def _arguments(node: Node) -> list[Node]:
    values = [*node.args, *(node.kwargs.get(name) for name in ("input", "query", "key", "value"))]
    return [value for value in values if isinstance(value, Node)]


def _of_function(
    gm: GraphModule, node: Node, free: AbstractSet[Node], ledger: Ledger, taken: AbstractSet[str]
) -> Iterator[Skipped]:
    kind = _function_name(node)
    reason = _reason_of_function(node, kind)
    weighs = reason is not Reason.ELEMENTWISE
    groups: dict[str, list[Tensor]] = {}
    for path, tensor in stored_tensors_of(gm, node, free):
        if isinstance(tensor, nn.Parameter) or (weighs and tensor.is_floating_point() and tensor.ndim > 1):
            name = _holder_name(path) if weighs or re.search("norm|prelu", kind) else path
            groups.setdefault(path if name in taken else name, []).append(tensor)
    if reason is Reason.RECURRENT and groups:
        groups = {next(iter(groups)): [tensor for group in groups.values() for tensor in group]}
    for name, tensors in groups.items():
        params = ledger.take_whole(tensors)
        if params or (weighs and reason is not Reason.INSIDE_LEAF):
            detail = "" if params else "its weights are counted with another layer"
            macs = _function_macs(node, kind, reason, tensors)
            yield Skipped(name, kind, reason, detail, params, macs)


def _function_name(node: Node) -> str:
    name = getattr(node.target, "__name__", str(node.target)) if node.op == "call_function" else node.target
    return str(name).partition(".")[0]


def _reason_of_function(node: Node, kind: str) -> Reason:
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return Reason.INSIDE_LEAF
    if _RECURRENT.match(kind):
        return Reason.RECURRENT
    if _LOOKUP.search(kind):
        return Reason.EMBEDDING
    if "multi_head_attention" in kind:
        return Reason.ATTENTION
    return Reason.OTHER_LAYER if _PRODUCT.match(kind) else Reason.ELEMENTWISE


def _function_macs(node: Node, kind: str, reason: Reason, tensors: list[Tensor]) -> int:
    if reason is Reason.OTHER_LAYER:
        return product_macs(node, kind)
    matrices = [tensor for tensor in tensors if tensor.ndim == 2]
    shape = shape_of(node.all_input_nodes[0])
    if reason not in (Reason.RECURRENT, Reason.ATTENTION) or not matrices or not shape:
        return 0
    return sum(matrix.numel() for matrix in matrices) * (math.prod(shape) // shape[-1])


def _holder_name(path: str) -> str:
    """`norm.weight` and `norm.bias` belong to `norm`, `pos_embed` to itself."""
    owner, _, leaf = path.rpartition(".")
    return owner if owner and _WEIGHT_NAME.match(leaf) else path


def _tensor_words(tensor: Tensor) -> str:
    return f"Parameter {'x'.join(map(str, tensor.shape)) or 'scalar'}"
