"""What a file says about itself: `metadata_props` of an ONNX model, written at export and read back."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxdecomp.errors import ExportError, first_line
from fxdecomp.export.quantization import Quantization
from fxdecomp.files import beside
from fxdecomp.graphs.records import Record
from fxdecomp.quality import Quality
from fxdecomp.version import __version__

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
        quality: How far this file is from the original network, None where that was not measured: a lowered
            file has a distance of its own, never that of the network that it was made from.

    Example:
        >>> import tempfile, torch, fxdecomp
        >>> from pathlib import Path
        >>> gm = fxdecomp.trace(torch.nn.Sequential(torch.nn.Linear(64, 32)), torch.randn(1, 64))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "small.onnx"
        ...     _ = fxdecomp.export.to_onnx(gm, torch.randn(1, 64), path)
        ...     metadata = fxdecomp.export.read_metadata(path)
        >>> metadata.quantization is None
        True
    """

    version: str
    torch_version: str
    opset: int
    inputs: Mapping[str, tuple[int, ...]]
    record: Record | None = None
    record_digest: str = ""
    quantization: Quantization | None = None
    quality: Quality | None = None


def metadata_props(record: Record | None, inputs: Mapping[str, Tensor], opset: int) -> dict[str, str]:
    """The entries that `read_metadata` reads. The same model gives the same entries, byte for byte."""
    props = {
        "version": __version__,
        "torch_version": torch.__version__,
        "opset": str(opset),
        "inputs": json.dumps(
            {name: list(value.shape) for name, value in inputs.items() if isinstance(value, Tensor)}
        ),
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
    _describe(path, "quantization", found.to_dict())


def describe_quality(path: Path, found: Quality) -> None:
    """Add to a lowered file how far it is from the original network.

    Args:
        path: An ONNX file of less than 2 GiB, rewritten whole or not at all.
        found: What to say.
    """
    with beside(path) as folder:
        draft = folder / path.name
        shutil.copyfile(path, draft)
        _describe(draft, "quality", found.to_dict())
        draft.replace(path)


def _describe(path: Path, key: str, data: dict[str, Any]) -> None:
    import onnx

    model = onnx.load(str(path))
    model.metadata_props.add(key=f"{_PREFIX}{key}", value=json.dumps(data))
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
        ...     metadata = fxdecomp.export.read_metadata(path)
        >>> metadata.inputs
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
        record = Record.from_dict(json.loads(text)) if text else None
        own = props.get("quality", "")
        quality = Quality.from_dict(json.loads(own)) if own else None if record is None else record.quality
        return FileMetadata(
            version=props["version"],
            torch_version=props["torch_version"],
            opset=int(props["opset"]),
            inputs={name: _shape(sizes) for name, sizes in json.loads(props["inputs"]).items()},
            record=record,
            record_digest=digest,
            quantization=Quantization.from_dict(json.loads(quantized)) if quantized else None,
            quality=quality,
        )
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ExportError(f"{path}: what it says about itself is damaged: {first_line(error)}") from error


def _shape(sizes: Any) -> tuple[int, ...]:
    if not isinstance(sizes, list) or any(type(size) is not int or size < 0 for size in sizes):
        raise TypeError(f"a shape is a list of whole numbers, got {sizes!r}")
    return tuple(sizes)
