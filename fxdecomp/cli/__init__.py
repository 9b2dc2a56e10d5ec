"""The command line: one module a command; each parses, calls the library and prints."""

from fxdecomp.cli.app import app, main

__all__ = ["app", "main"]
