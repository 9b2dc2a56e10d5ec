"""What passes that narrow layers share: layers in the place of others, new sizes, rows of the report."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from fxdecomp.chains import Stage
from fxdecomp.graphs.replacing import Replacer
from fxdecomp.layers import LayerSpec
from fxdecomp.outcomes import Narrowed
from fxdecomp.sites import Site


def row_of(site: Site) -> Narrowed:
    """A layer as it is."""
    return Narrowed(site.name, str(site.spec), site.params, site.macs)


def exchange(replacer: Replacer, site: Site, spec: LayerSpec, weight: Tensor, bias: Tensor | None) -> None:
    """Put another layer in the place of one, in its type."""
    dtype = site.weight.dtype
    bias = None if bias is None else bias.to(dtype)
    replacer.replace(site, [[Stage("", spec, weight.to(dtype).contiguous(), bias)]])


def record_size(node: Node, axis: int, size: int) -> None:
    """Write down the new shape of a value."""
    recorded = node.meta.get("tensor_meta")
    node.meta.pop("val", None)
    if recorded is not None:
        shape = list(recorded.shape)
        shape[axis] = size
        node.meta["tensor_meta"] = recorded._replace(shape=torch.Size(shape), stride=())
