"""What is in a network, and which methods suit each layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch.fx import GraphModule

from fxdecomp.decompositions import METHODS, method_for
from fxdecomp.decompositions.factorising import weight_refusal
from fxdecomp.layers import LayerSpec
from fxdecomp.sites import survey


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer, or what else holds weights: its cost, and the methods that suit it or why none does."""

    site: str
    layer: str
    macs: int
    params: int
    methods: tuple[str, ...]
    reason: str = ""

    @property
    def verdict(self) -> str:
        """The methods, or the reason."""
        return ", ".join(self.methods) or self.reason

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON data."""
        return asdict(self)


def inspect_layers(gm: GraphModule) -> tuple[LayerRow, ...]:
    """Everything of a traced network that holds weights, exactly once."""
    found = survey(gm)
    rows = []
    for site in found.sites:
        obstacle = weight_refusal(site.weight, site.spec)
        suited = () if obstacle else _suited(site.spec.per_group)
        reason = str(obstacle.reason) if obstacle else "" if suited else "no method suits it"
        rows.append(LayerRow(site.name, str(site.spec), site.macs, site.params, suited, reason))
    left = (*found.skipped, *found.others)
    rows += [LayerRow(s.site, s.layer, s.macs, s.params, (), s.sentence) for s in left]
    return tuple(rows)


def _suited(group: LayerSpec) -> tuple[str, ...]:
    methods = [method_for(method, group) for method in METHODS]
    return tuple(dict.fromkeys(method.name for method in methods if method.refusal(group) is None))
