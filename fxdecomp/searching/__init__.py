"""The fastest network within a loss of quality."""

from fxdecomp.searching.searcher import Metric, search
from fxdecomp.searching.trials import SearchResult

__all__ = ["Metric", "SearchResult", "search"]
