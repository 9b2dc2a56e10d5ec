"""Pools with `ceil_mode` whose last window PyTorch drops, and ONNX does not.

PyTorch has no window that begins in the padding at the end; ONNX rounds up and has it. Where the sizes are
fixed the pool is written without `ceil_mode`, with as much padding at the end as its last window needs.
"""

from __future__ import annotations

from typing import Any

from fxdecomp.errors import ExportError


def settle_windows(model: Any) -> None:
    """Let every pool of a model have the windows that PyTorch gives it.

    Args:
        model: An `onnx_ir.Model` with shapes, changed in place.

    Raises:
        ExportError: A mean over padding cannot be written so; names the pool.
    """
    for node in model.graph:
        if node.op_type in ("MaxPool", "AveragePool") and _number(node, "ceil_mode", 0):
            _settle(node)


def _settle(node: Any) -> None:
    given, wanted = node.inputs[0].shape, node.outputs[0].shape
    if given is None or wanted is None or not all(isinstance(n, int) for n in (*given[2:], *wanted[2:])):
        return
    kernel = node.attributes["kernel_shape"].as_ints()
    ones = [1] * len(kernel)
    strides, dilations = _numbers(node, "strides", ones), _numbers(node, "dilations", ones)
    pads = _numbers(node, "pads", [0] * 2 * len(kernel))
    begins, ends = pads[: len(kernel)], pads[len(kernel) :]
    windows = [(n - 1) * dilation + 1 for n, dilation in zip(kernel, dilations, strict=True)]
    axes = list(zip(given[2:], wanted[2:], strides, windows, begins, ends, strict=True))
    if all(-(-(size + b + e - w) // s) + 1 == out for size, out, s, w, b, e in axes):
        return
    needed = [max(0, (out - 1) * s + w - size - b) for size, out, s, w, b, _ in axes]
    counts = node.op_type == "AveragePool" and _number(node, "count_include_pad", 0)
    if counts and any(more > end for more, end in zip(needed, ends, strict=True)):
        raise ExportError(
            f'"{node.name}" is a mean with ceil_mode whose last window PyTorch cuts off, which ONNX cannot '
            "say; pool without ceil_mode, or with count_include_pad=False"
        )
    import onnx_ir

    node.attributes["pads"] = onnx_ir.AttrInt64s("pads", [*begins, *needed])
    node.attributes["ceil_mode"] = onnx_ir.AttrInt64("ceil_mode", 0)


def _number(node: Any, name: str, default: int) -> int:
    return int(node.attributes[name].as_int()) if name in node.attributes else default


def _numbers(node: Any, name: str, default: list[int]) -> list[int]:
    return list(node.attributes[name].as_ints()) if name in node.attributes else default
