"""What people see: reports, graph diffs, tables."""

from fxdecomp.reporting.graph_diff import graph_diff
from fxdecomp.reporting.report import Report, report

__all__ = ["Report", "graph_diff", "report"]
