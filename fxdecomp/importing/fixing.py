"""`fix_inputs`: a file some of whose inputs have one value for good."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fxdecomp.errors import ExportError, first_line
from fxdecomp.export.sessions import open_session
from fxdecomp.files import whole_file
from fxdecomp.importing.origin import OnnxOrigin


def fix_inputs(path: Path | str, values: Mapping[str, Any], out: Path | str) -> None:
    """Give inputs of an ONNX file a value for good, and write what is left of it.

    What hangs on such an input alone is computed now, by ONNX Runtime's basic optimisations: of an `If` that
    asks for the sampling rate one branch is left, and its layers are layers of the file like others.

    Args:
        path: The file.
        values: Values by the names of inputs.
        out: The new file, without these inputs.

    Raises:
        ExportError: The file cannot be read, has no such inputs, or takes no such values.
        WriteError: The new file cannot be written.

    Example:
        >>> import tempfile, torch, fxdecomp
        >>> from fxdecomp.importing import fix_inputs, from_onnx
        >>> class Scaled(torch.nn.Module):
        ...     def forward(self, x, scale):
        ...         return x * scale
        >>> inputs = (torch.ones(1, 4), torch.full((1, 1), 2.0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = fxdecomp.export.to_onnx(fxdecomp.trace(Scaled(), inputs), inputs, f"{folder}/a.onnx")
        ...     fix_inputs(f"{folder}/a.onnx", {"scale": [[3.0]]}, f"{folder}/b.onnx")
        ...     from_onnx(f"{folder}/b.onnx").input_names
        ('x',)
    """
    from onnx import helper, numpy_helper

    proto = OnnxOrigin.of(Path(path)).model()
    inputs = {item.name: item for item in proto.graph.input}
    if missing := [name for name in values if name not in inputs]:
        raise ExportError(f"{path} has no input {missing[0]!r}; it has {', '.join(inputs)}")
    for name, value in values.items():
        declared = inputs[name].type.tensor_type
        array = np.asarray(value, helper.tensor_dtype_to_np_dtype(declared.elem_type))
        lengths = [axis.dim_value or None for axis in declared.shape.dim]
        if array.ndim != len(lengths) or any(
            a not in (b, None) for a, b in zip(lengths, array.shape, strict=True)
        ):
            raise ExportError(f"input {name!r} of {path} has shape {lengths}; {array.shape} was given")
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
        proto.graph.input.remove(inputs[name])
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "model.onnx"
        try:
            open_session(proto.SerializeToString(), optimise="basic", optimised_path=written)
        except Exception as error:
            given = ", ".join(f"{name} = {value}" for name, value in values.items())
            raise ExportError(f"{path} cannot be run with {given}: {first_line(error)}") from error
        with whole_file(Path(out)) as file:
            file.write(written.read_bytes())
