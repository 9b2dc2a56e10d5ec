"""How long each layer took before and after, read off the kernel tables of a benchmark."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from fxdecomp.export.benchmark_report import BenchmarkReport
from fxdecomp.export.kernels import Kernel
from fxdecomp.outcomes import Applied, Outcome


def layer_times(
    outcomes: tuple[Outcome, ...], benchmark: BenchmarkReport
) -> dict[str, tuple[float | None, float | None]]:
    """Seconds before and after of each layer, None where its kernels were not seen.

    The first model of the benchmark is taken for the network before, and the first of the others that holds
    stages of these layers for the network after.
    """
    owners = _owners(outcomes)
    tables = list(benchmark.kernels.values())
    stages = owners.keys() - {outcome.site for outcome in outcomes}
    after = next((table for table in tables[1:] if any(_base(k.name, owners) in stages for k in table)), ())
    before_s, after_s = by_site(tables[0] if tables else (), owners), by_site(after, owners)
    return {o.site: (before_s.get(o.site), after_s.get(o.site)) for o in outcomes}


def _owners(outcomes: tuple[Outcome, ...]) -> dict[str, str]:
    """The site that each kernel name belongs to: its own, and its stages'."""
    owners = {outcome.site: outcome.site for outcome in outcomes}
    for outcome in outcomes:
        if isinstance(outcome, Applied):
            owners |= dict.fromkeys(outcome.stage_names, outcome.site)
    return owners


def _base(name: str, owners: Mapping[str, str]) -> str:
    """The name without the number that a layer's further calls bear."""
    return name if name in owners else re.sub(r"_\d+$", "", name)


def by_site(kernels: Iterable[Kernel], owners: Mapping[str, str]) -> dict[str, float]:
    """Seconds of each site, by the site that each kernel's name belongs to."""
    sums: dict[str, float] = {}
    for kernel in kernels:
        site = owners.get(_base(kernel.name, owners))
        if site is not None:
            sums[site] = sums.get(site, 0.0) + kernel.time_s
    return sums
