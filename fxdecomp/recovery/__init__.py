"""Distillation from the original network."""

from fxdecomp.recovery.recovering import recover

__all__ = ["recover"]
