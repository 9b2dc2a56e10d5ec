"""What a file says about itself: `metadata_props` of an ONNX model, written at export and read back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxdecomp.errors import ExportError, first_line
from fxdecomp.export.quantization import Quantization
from fxdecomp.graphs.records import Record

_PREFIX = "fxdecomp."


@dataclass(frozen=True, slots=True)
class FileMetadata:
    """What was done to a model, as found in its ONNX file.

    Attributes:
        version: Version of this package that wrote the file.
        torch_version: Version of PyTorch that exported it.
        opset: Version of ONNX's default operator set.
        inputs: Shape of each example input, by name.
        record: The history of the graph, with policy and outcomes; None where there was none.
        record_digest: SHA-256 of the record's JSON text; empty without a record.
        quantization: What was quantised and what was not; None for a file that is not quantised.

    Example:
        >>> import tempfile, torch, fxdecomp
        >>> from pathlib import Path
        >>> gm = fxdecomp.trace(torch.nn.Sequential(torch.nn.Linear(64, 32)), torch.randn(1, 64))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "small.onnx"
        ...     _ = fxdecomp.export.to_onnx(gm, torch.randn(1, 64), path)
        ...     told = fxdecomp.export.read_metadata(path)
        >>> told.quantization is None
        True
    """

    version: str
    torch_version: str
    opset: int
    inputs: Mapping[str, tuple[int, ...]]
    record: Record | None = None
    record_digest: str = ""
    quantization: Quantization | None = None


def metadata_props(record: Record | None, inputs: Mapping[str, Tensor], opset: int) -> dict[str, str]:
    """The entries that `read_metadata` reads. The same model gives the same entries, byte for byte."""
    props = {
        "version": version("fxdecomp"),
        "torch_version": torch.__version__,
        "opset": str(opset),
        "inputs": json.dumps({name: list(value.shape) for name, value in inputs.items()}),
    }
    if record is not None:
        text = json.dumps(record.to_dict(), sort_keys=True)
        props["record"] = text
        props["record_digest"] = hashlib.sha256(text.encode()).hexdigest()
    return {_PREFIX + key: value for key, value in props.items()}


def describe_quantization(path: Path, found: Quantization) -> None:
    """Add to a file what was quantised in it.

    Args:
        path: An ONNX file of less than 2 GiB, rewritten.
        found: What to say.
    """
    import onnx

    model = onnx.load(str(path))
    model.metadata_props.add(key=f"{_PREFIX}quantization", value=json.dumps(found.to_dict()))
    onnx.save(model, str(path))


def read_metadata(path: Path | str) -> FileMetadata | None:
    """Read what a file says about itself, without loading its weights' external data.

    Args:
        path: An ONNX file.

    Returns:
        The metadata, or None for a file that this package did not write.

    Raises:
        ExportError: If the file is no ONNX model, or its record was altered.

    Example:
        >>> import tempfile, torch, fxdecomp
        >>> from pathlib import Path
        >>> gm = fxdecomp.trace(torch.nn.Sequential(torch.nn.Linear(64, 32)), torch.randn(1, 64))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "small.onnx"
        ...     _ = fxdecomp.export.to_onnx(gm, torch.randn(1, 64), path)
        ...     told = fxdecomp.export.read_metadata(path)
        >>> told.inputs
        {'input': (1, 64)}
    """
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise ExportError(f"{path} cannot be read as an ONNX model: {error}") from error
    props = {
        item.key.removeprefix(_PREFIX): item.value
        for item in model.metadata_props
        if item.key.startswith(_PREFIX)
    }
    if "version" not in props:
        return None
    text = props.get("record", "")
    digest = props.get("record_digest", "")
    quantized = props.get("quantization", "")
    if text and hashlib.sha256(text.encode()).hexdigest() != digest:
        raise ExportError(
            f"{path}: the record of the transformation does not match its digest; it was altered"
        )
    try:
        return FileMetadata(
            version=props["version"],
            torch_version=props["torch_version"],
            opset=int(props["opset"]),
            inputs={name: _shape(sizes) for name, sizes in json.loads(props["inputs"]).items()},
            record=Record.from_dict(json.loads(text)) if text else None,
            record_digest=digest,
            quantization=Quantization.from_dict(json.loads(quantized)) if quantized else None,
        )
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ExportError(f"{path}: what it says about itself is damaged: {first_line(error)}") from error


def _shape(sizes: Any) -> tuple[int, ...]:
    if not isinstance(sizes, list) or any(type(size) is not int or size < 0 for size in sizes):
        raise TypeError(f"a shape is a list of whole numbers, got {sizes!r}")
    return tuple(sizes)
