"""What is in a network, what each layer takes, and which methods suit it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch.fx import GraphModule

from fxdecomp.decompositions import Decomposition, all_methods, method_for
from fxdecomp.decompositions.factorising import weight_refusal
from fxdecomp.export import benchmark, to_onnx
from fxdecomp.export.sessions import CPU
from fxdecomp.graphs.inputs import ExampleInputs
from fxdecomp.layers import LayerSpec
from fxdecomp.ranks import Ratio
from fxdecomp.reporting.layer_times import by_site
from fxdecomp.sites import survey

_HALF = Ratio(0.5, multiple_of=8)
_WORTH = 0.01


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer, or what else holds weights: its cost, and the methods that suit it or why none does.

    Attributes:
        site: Its name.
        layer: What it is.
        macs: Its multiply-accumulates.
        params: Its parameters.
        methods: The methods that suit it.
        reason: Why none does.
        share: Its part of the network's multiply-accumulates.
        params_share: Its part of the network's parameters.
        saves: What part of the network's multiply-accumulates goes with the cheapest method at half the
            ranks; an upper bound of what is to be had without much loss, not a promise.
        time_share: Its part of the time that ONNX Runtime takes, None where that was not measured.
    """

    site: str
    layer: str
    macs: int
    params: int
    methods: tuple[str, ...]
    reason: str = ""
    share: float = 0.0
    params_share: float = 0.0
    saves: float = 0.0
    time_share: float | None = None

    @property
    def verdict(self) -> str:
        """The methods, or the reason."""
        return ", ".join(self.methods) or self.reason

    @property
    def worth(self) -> str:
        """Whether a decomposition is worth it, in a word or two; or the reason why there is none."""
        if not self.methods:
            return self.reason
        if self.saves <= 0:
            return "no, too small"
        return f"{'yes' if self.saves >= _WORTH else 'little'} -{self.saves:.1%}"

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON data."""
        return asdict(self) | {"worth": self.worth}


def inspect_layers(gm: GraphModule, times: Mapping[str, float] | None = None) -> tuple[LayerRow, ...]:
    """Everything of a traced network that holds weights, exactly once.

    Args:
        gm: The network.
        times: What part of the time each layer takes, from `time_shares`.
    """
    found = survey(gm)
    rows, saved = [], {}
    for site in found.sites:
        obstacle = weight_refusal(site.weight, site.spec)
        suited = () if obstacle else _suited(site.spec.per_group)
        reason = str(obstacle.reason) if obstacle else "" if suited else "no method suits it"
        rows.append(
            LayerRow(site.name, str(site.spec), site.macs, site.params, tuple(m.name for m in suited), reason)
        )
        least = min((_macs_at_half(method, site.spec) for method in suited), default=site.spec.macs)
        saved[site.name] = site.macs * (1 - least / site.spec.macs) if site.spec.macs else 0.0
    left = (*found.skipped, *found.others)
    rows += [LayerRow(s.site, s.layer, s.macs, s.params, (), s.sentence) for s in left]
    macs, params = sum(row.macs for row in rows) or 1, sum(row.params for row in rows) or 1
    return tuple(
        replace(
            row,
            share=row.macs / macs,
            params_share=row.params / params,
            saves=max(0.0, saved.get(row.site, 0.0) / macs),
            time_share=None if times is None else times.get(row.site, 0.0),
        )
        for row in rows
    )


def time_shares(
    gm: GraphModule, example_inputs: ExampleInputs, *, provider: str = CPU, threads: int = 1
) -> dict[str, float]:
    """What part of the time of the network's ONNX file each layer takes, by ONNX Runtime's own profile.

    Raises:
        ExportError: The network cannot be exported.
        BenchmarkError: The file cannot be timed on the provider.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        to_onnx(gm, example_inputs, path)
        timed = benchmark({"network": path}, providers=[provider], threads=threads, rounds=5)
    timed.timing("network")  # says what the matter is where it could not be timed
    kernels = timed.kernels.get("network", ())
    whole = sum(kernel.time_s for kernel in kernels) or 1.0
    names = [row.site for row in inspect_layers(gm)]
    return {
        site: time / whole for site, time in by_site(kernels, dict(zip(names, names, strict=True))).items()
    }


def _suited(group: LayerSpec) -> Sequence[Decomposition]:
    methods = [method_for(method, group) for method in all_methods()]
    suited = {method.name: method for method in methods if method.refusal(group) is None}
    return tuple(suited.values())


def _macs_at_half(method: Decomposition, spec: LayerSpec) -> int:
    rank = _HALF.choose(method, spec, ())
    return spec.macs if rank is None else method.form(spec, rank).macs
