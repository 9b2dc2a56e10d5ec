"""The fastest network within a loss of quality."""

from fxdecomp.searching.judging import Metric
from fxdecomp.searching.searcher import search
from fxdecomp.searching.trials import SearchResult

__all__ = ["Metric", "SearchResult", "search"]
