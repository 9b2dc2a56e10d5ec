"""The canonical polyadic decomposition of a kernel: starts, sweeps, the separable case."""
