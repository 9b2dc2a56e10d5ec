"""A network with chains of the right sizes and drawn weights, to be timed before any is computed.

The time of a run does not depend on the values of the weights; their factorisation takes minutes. So a plan
is timed, and repaired, first.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxdecomp.chains import Chain
from fxdecomp.decompositions import Rank, method_named
from fxdecomp.decompositions.factorising import forms_of
from fxdecomp.errors import PolicyError
from fxdecomp.export.drafting import save_model
from fxdecomp.export.examples import flat_graph
from fxdecomp.export.exporter import export_graph
from fxdecomp.export.matching import NotSpliceable
from fxdecomp.export.splicing import splice
from fxdecomp.graphs.copies import copy_sharing_tensors
from fxdecomp.graphs.origins import origin_of
from fxdecomp.graphs.replacing import Replacer, remove_unused
from fxdecomp.layers import LayerSpec
from fxdecomp.sites import Site, survey
from fxdecomp.sites.base import shape_of

_log = logging.getLogger(__name__)

Picks = Mapping[str, tuple[str, Rank]]
"""Method and rank by layer."""


def write_mock(gm: GraphModule, picks: Picks, path: Path) -> None:
    """Write a graph, some of its layers replaced by chains of drawn weights, as an ONNX file.

    Args:
        gm: The graph; it is not changed.
        picks: What becomes of which layers; the others stay.
        path: The file.

    Raises:
        PolicyError: The shapes of the graph's inputs are not recorded.
        ExportError: The graph cannot be exported.
    """
    mock = copy_sharing_tensors(gm)
    generator = torch.Generator().manual_seed(0)
    replacer = Replacer(mock)
    for site in survey(mock).sites:
        if site.name in picks:
            chains = _chains(site, *picks[site.name], generator)
            replacer.replace(site, [chain.stages for chain in chains])
    remove_unused(mock)
    mock.recompile()
    origin = origin_of(gm)
    if origin is not None:
        try:
            splice(mock, origin).save(path, {})
            return
        except NotSpliceable as reason:
            _log.info("the file that the graph was read from is not timed: %s", reason)
    model = export_graph(flat_graph(mock), recorded_inputs(gm), batch=False, axes={}, opset=None)
    save_model(model, path)


def recorded_inputs(gm: GraphModule) -> tuple[Tensor, ...]:
    """Inputs of the shapes and types that a graph was traced with: normal, zeros where they are no floats.

    Raises:
        PolicyError: They are not recorded.
    """
    generator = torch.Generator().manual_seed(0)
    device = next((parameter.device for parameter in gm.parameters()), torch.device("cpu"))
    values: list[Tensor] = []
    for node in gm.graph.nodes:
        if node.op != "placeholder":
            continue
        shape = shape_of(node)
        dtype = getattr(node.meta.get("tensor_meta", node.meta.get("val")), "dtype", None)
        if shape is None or dtype is None:
            if values and node.args:
                break  # inputs at the end that are left to their defaults
            raise PolicyError(
                f"a budget of Latency needs the shape of the input {node.target!r}; trace the model anew"
            )
        if dtype.is_floating_point:
            values.append(torch.randn(shape, generator=generator).to(dtype))
        else:
            values.append(torch.zeros(shape, dtype=dtype))
    return tuple(value.to(device) for value in values)


def _chains(site: Site, method: str, rank: Rank, generator: torch.Generator) -> list[Chain]:
    forms = forms_of(method_named(method), rank, site.specs)
    weights = tuple(_drawn(stage.spec, site.weight, generator) for stage in forms[0].stages)
    return [Chain(form, weights, site.bias) for form in forms]


def _drawn(spec: LayerSpec, like: Tensor, generator: torch.Generator) -> Tensor:
    scale = math.prod(spec.weight_shape[1:]) ** -0.5
    return torch.randn(spec.weight_shape, generator=generator).mul(scale).to(like)
