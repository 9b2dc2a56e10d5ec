"""Low-rank decomposition of PyTorch networks as a torch.fx graph transformation."""

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
from fxdecomp.outcomes import Applied, Folded, Outcome, Reason, Skipped
from fxdecomp.pipeline import transform
from fxdecomp.plans import Plan
from fxdecomp.policy import Latency, MACs, Params, Policy
from fxdecomp.policy.rules import Rule
from fxdecomp.quality import OutputDistance, Quality
from fxdecomp.ranks import VBMF, Energy, Fixed, Ratio
from fxdecomp.recovery import recover
from fxdecomp.reporting import Report, graph_diff, report
from fxdecomp.searching.searcher import search
from fxdecomp.searching.trials import SearchResult
from fxdecomp.tracing import trace

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
    "TraceError",
    "export",
    "graph_diff",
    "plot_spectra",
    "recover",
    "report",
    "search",
    "trace",
    "transform",
]
