"""A network to a graph: symbolic, exported, with the conditions of its export, run against the network."""

from fxdecomp.tracing.tracer import trace

__all__ = ["trace"]
