"""Distillation from the original network."""
