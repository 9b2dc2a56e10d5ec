"""`fxdecomp inspect`: what is in a network."""

from __future__ import annotations

from fxdecomp.cli.options import AsJson, Inputs, Model, Quiet, traced
from fxdecomp.cli.terminal import print_blocks, print_json


def inspect(model: Model, inputs: Inputs = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """List the layers of a network with their cost and the methods that suit them."""
    from fxdecomp.cli.tables import inspect_table
    from fxdecomp.inspection import inspect_layers
    from fxdecomp.reporting.text import short

    rows = inspect_layers(traced(model, inputs, quiet=quiet or as_json))
    if as_json:
        print_json([row.to_dict() for row in rows])
        return
    macs, params = sum(row.macs for row in rows), sum(row.params for row in rows)
    total = f"{len(rows)} layers, {short(macs)} MACs, {short(params)} parameters"
    print_blocks(inspect_table(rows), total)
