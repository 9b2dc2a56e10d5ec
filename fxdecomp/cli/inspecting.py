"""`fxdecomp inspect`: what is in a network."""

from __future__ import annotations

from rich.table import Table

from fxdecomp.cli.options import AsJson, Inputs, Model, traced
from fxdecomp.cli.terminal import console, print_json


def inspect(model: Model, inputs: Inputs = None, as_json: AsJson = False) -> None:
    """What is in a network: its layers, their cost, and which methods suit them, or why none does."""
    from fxdecomp.inspection import inspect_layers

    rows = inspect_layers(traced(model, inputs))
    if as_json:
        print_json([row.to_dict() for row in rows])
        return
    table = Table("layer", "kind", "MACs", "params", "methods", title=model)
    for row in rows:
        table.add_row(row.site, row.layer, f"{row.macs:,}", f"{row.params:,}", row.verdict)
    console.print(table)
    console.print(f"{sum(row.macs for row in rows):,} MACs, {sum(row.params for row in rows):,} parameters")
