"""A chain fitted to moments: the metric, tails in closed form, alternation, refit, rectified refit."""
