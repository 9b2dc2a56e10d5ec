"""`fxdecomp cache`: the measured times that are kept on disk."""

from __future__ import annotations

from typing import Annotated

import typer

from fxdecomp.cli.options import AsJson
from fxdecomp.cli.terminal import print_json, print_text


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Delete all times")] = False,
    as_json: AsJson = False,
) -> None:
    """Show or clear the times that budgets of time measured."""
    from fxdecomp.latency.cache import LatencyCache, cache_folder

    kept = LatencyCache(cache_folder())
    deleted = kept.clear() if clear else 0
    found = {"folder": str(kept.folder), "bytes": kept.size_bytes(), "times": kept.summary()}
    if as_json:
        print_json(found | {"deleted": deleted})
        return
    lines = [f"{deleted} deleted"] if clear else []
    lines += [f"{kept.folder}: {sum(kept.summary().values())} times, {kept.size_bytes() / 1e6:.1f} MB"]
    print_text("\n".join([*lines, *(f"{count:8}  {where}" for where, count in kept.summary().items())]))
