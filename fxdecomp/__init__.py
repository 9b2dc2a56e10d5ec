"""Low-rank decomposition of PyTorch networks as a torch.fx graph transformation.

The public names are loaded when they are first asked for: torch takes seconds, and not every use needs it.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from fxdecomp.version import __version__ as __version__

if TYPE_CHECKING:
    from fxdecomp import export
    from fxdecomp.errors import (
        BenchmarkError,
        CalibrationError,
        ExportError,
        FxdecompError,
        ParityError,
        PassError,
        PolicyError,
        RecoveryError,
        TraceError,
    )
    from fxdecomp.inspecting.spectra import plot_spectra
    from fxdecomp.outcomes import Applied, Folded, Outcome, Skipped
    from fxdecomp.pipeline import transform
    from fxdecomp.plans import Plan
    from fxdecomp.policy import Latency, MACs, Params, Policy
    from fxdecomp.policy.rules import Rule
    from fxdecomp.quality import OutputDistance, Quality
    from fxdecomp.ranks import VBMF, Energy, Fixed, Ratio
    from fxdecomp.reasons import Reason
    from fxdecomp.recovery import recover
    from fxdecomp.reporting.graph_diff import graph_diff
    from fxdecomp.reporting.report import Report, report
    from fxdecomp.searching.searcher import search
    from fxdecomp.searching.trials import SearchResult
    from fxdecomp.studies import Study, study
    from fxdecomp.tracing import trace

_HOMES = {
    "errors": "BenchmarkError CalibrationError ExportError FxdecompError ParityError PassError PolicyError "
    "RecoveryError TraceError",
    "inspecting.spectra": "plot_spectra",
    "outcomes": "Applied Folded Outcome Skipped",
    "pipeline": "transform",
    "plans": "Plan",
    "policy": "Latency MACs Params Policy",
    "policy.rules": "Rule",
    "quality": "OutputDistance Quality",
    "ranks": "VBMF Energy Fixed Ratio",
    "reasons": "Reason",
    "recovery": "recover",
    "reporting": "Report graph_diff report",
    "searching.searcher": "search",
    "searching.trials": "SearchResult",
    "studies": "Study study",
    "tracing": "trace",
}
"""The public names by the module that holds them."""


def __getattr__(name: str) -> Any:
    module = next((home for home, names in _HOMES.items() if name in names.split()), None)
    if module is not None:
        globals()[name] = value = getattr(import_module(f"fxdecomp.{module}"), name)
        return value
    if not name.startswith("_") and find_spec(f"fxdecomp.{name}") is not None:
        return import_module(f"fxdecomp.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "VBMF",
    "Applied",
    "BenchmarkError",
    "CalibrationError",
    "Energy",
    "ExportError",
    "Fixed",
    "Folded",
    "FxdecompError",
    "Latency",
    "MACs",
    "Outcome",
    "OutputDistance",
    "Params",
    "ParityError",
    "PassError",
    "Plan",
    "Policy",
    "PolicyError",
    "Quality",
    "Ratio",
    "Reason",
    "RecoveryError",
    "Report",
    "Rule",
    "SearchResult",
    "Skipped",
    "Study",
    "TraceError",
    "export",
    "graph_diff",
    "plot_spectra",
    "recover",
    "report",
    "search",
    "study",
    "trace",
    "transform",
]
