"""`fxdecomp inspect`: what is in a network, or what was done to a file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fxdecomp.cli.options import (
    AsJson,
    Inputs,
    Model,
    Provider,
    Quiet,
    Seed,
    Threads,
    Tolerance,
    Trust,
    traced,
)
from fxdecomp.cli.terminal import print_blocks, print_json, working

if TYPE_CHECKING:
    from fxdecomp.export import FileMetadata


def inspect(
    model: Model,
    inputs: Inputs = None,
    time: Annotated[bool, typer.Option("--time", help="Measure each layer's part of the time too")] = False,
    provider: Provider = "cpu",
    threads: Threads = 1,
    seed: Seed = 0,
    tolerance: Tolerance = None,
    trust: Trust = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """List the layers of a network, and which are worth it.

    A line a layer: its part of the cost, with --time of the time, and whether it is worth it.
    Of an ONNX file that this program wrote, tell what was done to it.
    """
    metadata = _metadata(model)
    if metadata is not None:
        if as_json:
            print_json(_as_data(metadata))
        else:
            _tell(model, metadata)
        return
    from fxdecomp.cli.tables import inspect_table, left_alone
    from fxdecomp.graphs.records import examples_of
    from fxdecomp.inspecting.layers import inspect_layers, time_shares
    from fxdecomp.providers import provider_of
    from fxdecomp.reporting.text import short

    quiet = quiet or as_json
    gm = traced(model, inputs, quiet=quiet, trust=trust, seed=seed, tolerance=tolerance)
    times = None
    if time:
        with working("timing it", quiet=quiet):
            times = time_shares(gm, examples_of(gm), provider=provider_of(provider), threads=threads)
    rows = inspect_layers(gm, times)
    if as_json:
        print_json([row.to_dict() for row in rows])
        return
    macs, params = sum(row.macs for row in rows), sum(row.params for row in rows)
    total = f"{len(rows)} layers, {short(macs)} MACs, {short(params)} parameters"
    table, left = inspect_table(rows), left_alone(rows)
    print_blocks(
        *([table] if table.row_count else []),
        *([left] if left else []),
        f"{total}; MACs, params{', time' if time else ''}: each layer's part. Worth it: what the cheapest "
        "method takes off the network's MACs at half the ranks; --json lists the methods of each layer",
    )


def _metadata(model: str) -> FileMetadata | None:
    from fxdecomp.export import read_metadata

    path = Path(model)
    return read_metadata(path) if path.suffix == ".onnx" and path.is_file() else None


def _as_data(metadata: FileMetadata) -> dict[str, Any]:
    record = metadata.record
    return asdict(metadata) | {"record": None if record is None else record.to_dict()}


def _tell(model: str, metadata: FileMetadata) -> None:
    from fxdecomp.cli.tables import layer_tables
    from fxdecomp.reporting import Report

    sizes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in metadata.inputs.items())
    lines = [
        f"{model}: written by fxdecomp {metadata.version} with torch {metadata.torch_version}, "
        f"opset {metadata.opset}; example inputs: {sizes}"
    ]
    tables = []
    if metadata.record is not None and metadata.record.outcomes:
        report = Report(metadata.record)
        tables = layer_tables(report)
        lines += [report.summary, *([] if metadata.quality is None else [metadata.quality.sentence])]
        lines += [*report.remarks, f"digest of the record: {metadata.record_digest}"]
    else:
        lines.append("nothing was decomposed")
    if metadata.quantization is not None:
        lines.append(str(metadata.quantization))
    print_blocks(*tables, "\n".join(lines))
