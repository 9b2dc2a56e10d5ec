"""What people see: reports, graph diffs, tables, pictures."""

from fxdecomp.reporting.evidence import Frontier, FrontierPoint, Variant
from fxdecomp.reporting.graph_diff import graph_diff
from fxdecomp.reporting.of_files import report_of_files
from fxdecomp.reporting.report import Report, report

__all__ = ["Frontier", "FrontierPoint", "Report", "Variant", "graph_diff", "report", "report_of_files"]
