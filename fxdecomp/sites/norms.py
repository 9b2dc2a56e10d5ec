"""BatchNorms of a graph, in any dialect: what they store, and how they read as a scale and a shift."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F  # noqa: N812

from fxdecomp.sites.constants import Constants
from fxdecomp.sites.modules import hooks_of

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_aten = torch.ops.aten
_FUNCTIONAL = (F.batch_norm, torch.batch_norm, _aten.batch_norm.default)
LEGIT = _aten._native_batch_norm_legit_no_training.default
"""The form that gives a tuple, of which the first is the value."""


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """A BatchNorm in the graph, or why it is none.

    Attributes:
        name: What the user knows it by.
        source: The node that it normalises.
        key: The same for two places only where both do the same.
        weight: Its gamma, `[C]`, None for 1.
        bias: Its beta, `[C]`, None for 0.
        mean: The stored mean, `[C]`; None where there is a reason.
        var: The stored variance, `[C]`; None where there is a reason.
        eps: Added to the variance.
        reason: Why it does not read as `scale * x + shift`; empty where it does.
    """

    name: str
    source: object
    key: tuple[object, ...]
    weight: Tensor | None = None
    bias: Tensor | None = None
    mean: Tensor | None = None
    var: Tensor | None = None
    eps: float = 1e-5
    reason: str = ""

    @property
    def scale(self) -> Tensor:
        """`gamma / sqrt(var + eps)`, `[C]` in float64."""
        assert self.var is not None
        scale = torch.rsqrt(self.var.detach().double() + self.eps)
        return scale if self.weight is None else scale * self.weight.detach().double()

    @property
    def shift(self) -> Tensor:
        """`beta - scale mean`, `[C]` in float64."""
        assert self.mean is not None
        shift = -self.scale * self.mean.detach().double()
        return shift if self.bias is None else shift + self.bias.detach().double()


def norms_of(gm: GraphModule, constants: Constants) -> dict[Node, Norm]:
    """Every BatchNorm of a graph by its node, in graph order."""
    return {node: norm for node in gm.graph.nodes if (norm := _read(gm, node, constants))}


def _read(gm: GraphModule, node: Node, constants: Constants) -> Norm | None:
    if node.op == "call_module":
        module = gm.get_submodule(str(node.target))
        return _read_module(node, module) if isinstance(module, _NORMS) else None
    if node.op == "call_function" and node.target in _FUNCTIONAL:
        return _read_function(node, constants, functional=node.target is F.batch_norm)
    if node.op == "call_function" and node.target is LEGIT:
        return _read_legit(node, constants)
    return None


def _read_module(node: Node, module: nn.modules.batchnorm._BatchNorm) -> Norm:
    name, source, key = str(node.target), node.args[0] if node.args else None, ("module", id(module))
    if type(module).forward is not nn.modules.batchnorm._BatchNorm.forward or "forward" in vars(module):
        return Norm(name, source, key, reason="its forward is not torch's own")
    if hooks_of(module):
        return Norm(name, source, key, reason="it carries hooks")
    if module.running_mean is None or module.running_var is None:
        return Norm(name, source, key, reason="it keeps no running statistics")
    if module.training:
        return Norm(name, source, key, reason="it is in train mode; call eval() before tracing")
    return Norm(
        name, source, key, module.weight, module.bias, module.running_mean, module.running_var, module.eps
    )


def _read_function(node: Node, constants: Constants, *, functional: bool) -> Norm:
    order = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    if not functional:
        order = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")
    given = dict(zip(order, node.args, strict=False)) | dict(node.kwargs)
    if given.get("training", False):
        return Norm(node.name, given["input"], ("node", node), reason="it uses the statistics of the batch")
    return _from_constants(node, given["input"], given, float(given.get("eps", 1e-5)), constants)  # type: ignore[arg-type]


def _read_legit(node: Node, constants: Constants) -> Norm:
    order = ("input", "weight", "bias", "running_mean", "running_var", "momentum", "eps")
    given = dict(zip(order, node.args, strict=False)) | dict(node.kwargs)
    if any(user.target is not operator.getitem or user.args[1] != 0 for user in node.users):
        return Norm(node.name, given["input"], ("node", node), reason="its statistics are used elsewhere")
    return _from_constants(node, given["input"], given, float(given.get("eps", 1e-5)), constants)  # type: ignore[arg-type]


def _from_constants(
    node: Node, source: object, given: dict[str, object], eps: float, constants: Constants
) -> Norm:
    names = ("weight", "bias", "running_mean", "running_var")
    found = [constants.of(given.get(name)) for name in names]
    if (
        found[2] is None
        or found[3] is None
        or any(item is None and given.get(name) is not None for name, item in zip(names, found, strict=True))
    ):
        return Norm(node.name, source, ("node", node), reason="its statistics are not constants")
    key = ("function", eps, *(None if item is None else item.expression for item in found))
    path = found[2].path
    name = path.rpartition(".")[0] if path and "." in path else node.name
    weight, bias, mean, var = (None if item is None else item.value for item in found)
    return Norm(name, source, key, weight, bias, mean, var, eps)
