"""Which layer gets which method and rank: budgets, candidates, the solver."""

from fxdecomp.allocation.budgets import Budget, MACs, Params

__all__ = ["Budget", "MACs", "Params"]
