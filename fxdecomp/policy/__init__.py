"""What the user says: which layers, which methods and ranks, and what the network may cost."""

from fxdecomp.policy.budgets import Budget, Latency, MACs, Params
from fxdecomp.policy.policy import Policy
from fxdecomp.policy.rules import Rule

__all__ = ["Budget", "Latency", "MACs", "Params", "Policy", "Rule"]
