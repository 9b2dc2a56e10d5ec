"""`python -m fxdecomp`."""

from fxdecomp.cli import main

main()
