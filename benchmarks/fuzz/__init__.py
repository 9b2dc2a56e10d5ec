"""Random networks as Python text, and what must hold of every one of them."""
