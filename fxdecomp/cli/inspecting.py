"""`fxdecomp inspect`: what is in a network, or what was done to a file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxdecomp.cli.options import AsJson, Inputs, Model, Quiet, Trust, traced
from fxdecomp.cli.terminal import print_blocks, print_json

if TYPE_CHECKING:
    from fxdecomp.export import FileMetadata


def inspect(
    model: Model,
    inputs: Inputs = None,
    trust: Trust = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """List the layers of a network with their cost and the methods that suit them.

    Of an ONNX file that this program wrote, tell what was done to it.
    """
    metadata = _metadata(model)
    if metadata is not None:
        if as_json:
            print_json(_as_data(metadata))
        else:
            _tell(model, metadata)
        return
    from fxdecomp.cli.tables import inspect_table
    from fxdecomp.inspecting.layers import inspect_layers
    from fxdecomp.reporting.text import short

    rows = inspect_layers(traced(model, inputs, quiet=quiet or as_json, trust=trust))
    if as_json:
        print_json([row.to_dict() for row in rows])
        return
    macs, params = sum(row.macs for row in rows), sum(row.params for row in rows)
    total = f"{len(rows)} layers, {short(macs)} MACs, {short(params)} parameters"
    print_blocks(inspect_table(rows), total)


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
