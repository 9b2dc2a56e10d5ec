"""The version of the package; of a file of its own, so that the whole package may import it."""

__version__ = "0.1.0"
