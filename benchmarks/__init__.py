"""Reproducible sweeps and comparisons; not installed."""
