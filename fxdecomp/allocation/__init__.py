"""Which layer gets which method and rank: budgets, candidates, the solver."""

from fxdecomp.allocation.budgets import Budget, Latency, MACs, Params

__all__ = ["Budget", "Latency", "MACs", "Params"]
