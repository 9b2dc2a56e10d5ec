"""Run an ONNX Runtime session on PyTorch's values: tensors of any type, sequences of them, text, nothing."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxdecomp.export.sessions import onnxruntime

_WITHOUT_NUMPY = {
    torch.bfloat16: (torch.int16, 16),
    torch.float8_e4m3fn: (torch.int8, 17),
    torch.float8_e4m3fnuz: (torch.int8, 18),
    torch.float8_e5m2: (torch.int8, 19),
    torch.float8_e5m2fnuz: (torch.int8, 20),
}
"""Types that numpy has not: one of as many bits, and the type's number in ONNX."""


def run_on_tensors(session: Any, values: Sequence[Any], names: Sequence[str] | None = None) -> list[Any]:
    """The outputs of a session.

    Args:
        session: The session.
        values: One for each of its inputs: a tensor, a list of tensors, an array of text, or None.
        names: The outputs that are wanted, None for all.

    Returns:
        Tensors on the CPU, which share the session's memory; lists of them for sequences, arrays for text.
    """
    given = [item.name for item in session.get_inputs()]
    wanted = [item for item in session.get_outputs() if names is None or item.name in names]
    if any(isinstance(value, Tensor) and value.dtype in _WITHOUT_NUMPY for value in values):
        held = {name: _ort_value(value) for name, value in zip(given, values, strict=True)}
        found = session.run_with_ort_values([item.name for item in wanted], held)
        return [_from_ort(each) for each in found]
    feed = dict(zip(given, map(as_array, values), strict=True))
    short = [item.name for item in wanted if "float8" in item.type or "bfloat16" in item.type]
    others = [item.name for item in wanted if item.name not in short]
    results = dict(zip(others, map(as_value, session.run(others, feed)), strict=True)) if others else {}
    if short:
        held = {name: _ort_value(value) for name, value in zip(given, values, strict=True)}
        results |= dict(zip(short, map(_from_ort, session.run_with_ort_values(short, held)), strict=True))
    return [results[item.name] for item in wanted]


def as_array(value: Any) -> Any:
    """A tensor as an array that shares its memory where that lies on the CPU; lists element by element."""
    if isinstance(value, Tensor):
        return value.detach().cpu().contiguous().numpy()
    if isinstance(value, list | tuple):
        return [as_array(each) for each in value]
    return value


def as_value(array: Any) -> Any:
    """An array as a tensor that shares its memory; text stays an array, lists go element by element."""
    if isinstance(array, list):
        return [as_value(each) for each in array]
    if not isinstance(array, np.ndarray | np.generic) or array.dtype.kind in "OUS":
        return array
    return torch.from_numpy(np.asarray(array))


def _ort_value(value: Any) -> Any:
    kind = onnxruntime().OrtValue
    if isinstance(value, Tensor) and value.dtype in _WITHOUT_NUMPY:
        bits, number = _WITHOUT_NUMPY[value.dtype]
        array: NDArray[Any] = as_array(value.contiguous().view(bits))
        return kind.ortvalue_from_numpy_with_onnx_type(array, number)
    return kind.ortvalue_from_numpy(as_array(value))


def _from_ort(value: Any) -> Any:
    known = {number: dtype for dtype, (_, number) in _WITHOUT_NUMPY.items()}
    if not value.is_tensor() or value.element_type() not in known:
        return as_value(value.numpy())
    dtype = known[value.element_type()]
    if dtype is torch.bfloat16:
        shared: Tensor = torch.utils.dlpack.from_dlpack(value._ortvalue)
        return shared
    count = value.tensor_size_in_bytes()
    raw = bytearray(ctypes.string_at(value.data_ptr(), count))
    return torch.frombuffer(raw, dtype=torch.int8).reshape(value.shape()).view(dtype)
