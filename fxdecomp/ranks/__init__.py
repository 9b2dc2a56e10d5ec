"""Rank rules: a layer's spectra, channels or neither, to a rank."""
